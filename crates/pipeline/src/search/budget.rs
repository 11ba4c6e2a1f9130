//! How large a result may be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most that an output may take, every file of it counted.
///
/// ```
/// use bitmill_pipeline::Budget;
/// assert_eq!("4.5bpw".parse(), Ok(Budget::BitsPerWeight(4.5)));
/// assert_eq!("40GB".parse(), Ok(Budget::Bytes(40_000_000_000)));
/// assert_eq!(Budget::BitsPerWeight(4.5).bytes(1_000_000), 562_500);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Budget {
    /// Bytes.
    Bytes(u64),
    /// Bytes · 8 ÷ weights of the model.
    BitsPerWeight(f64),
}

impl Budget {
    /// The bytes of it for a model of `weights`.
    pub fn bytes(self, weights: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::BitsPerWeight(bits) => (bits * weights as f64 / 8.0) as u64,
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(bits) = text.trim().strip_suffix("bpw") else {
            let wrong =
                |_| format!("`{text}` is no budget: a size such as 40GB, or bits a weight such as 4.5bpw");
            return parse_size(text).map(Self::Bytes).map_err(wrong);
        };
        match bits.trim().parse::<f64>() {
            Ok(bits) if bits > 0.0 && bits <= 64.0 => Ok(Self::BitsPerWeight(bits)),
            _ => Err(format!("`{text}`: bits a weight are a number from 0 to 64, such as 4.5bpw")),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
            Self::BitsPerWeight(bits) => write!(f, "{bits}bpw"),
        }
    }
}

impl TryFrom<String> for Budget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

/// `5GB`, `500MB`, `4GiB`, or plain bytes; at least 1 KiB.
///
/// # Errors
/// What is wrong with `text`, to be shown beside it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 =
        text[..digits].parse().map_err(|_| "a size is a number and a unit, such as 5GB".to_owned())?;
    let unit: f64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("`{other}` is no unit: B, KB, MB, GB, KiB, MiB, GiB")),
    };
    let bytes = number * unit;
    if !(1024.0..=1e15).contains(&bytes) {
        return Err("a size here is at least 1 KiB and at most 1 PB".into());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_both_kinds_of_units() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(parse_size("2048"), Ok(2048));
        for bad in ["", "GB", "5 parsecs", "-1GB", "0", "1e9GB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn budgets_read_back_as_they_are_written() {
        for budget in [Budget::Bytes(123_456_789), Budget::BitsPerWeight(3.55)] {
            assert_eq!(budget.to_string().parse(), Ok(budget));
        }
        for bad in ["", "bpw", "0bpw", "-3bpw", "nanbpw", "65bpw", "4.5", "4.5bits"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }
}
