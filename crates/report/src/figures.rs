//! How figures are written for people: as many digits as a column's reader can use, the same for all of it.

/// Stands for a figure that does not apply or has no value.
pub(crate) const ABSENT: &str = "—";

/// As wide as a digit, and not trimmed by what lays out tables.
pub(crate) const PAD: char = '\u{2007}';

/// How the figures of one column are written, so that they can be compared down the column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Digits {
    /// With this many digits after the point.
    Fixed(usize),
    /// As `1.234e-5`, with this many digits after the point.
    Scientific(usize),
}

impl Digits {
    /// Enough for `significant` digits of the smallest figure above zero, at most `most` after the point and never
    /// fewer than `least`; scientific where that does not do, and where a figure is beyond ten million.
    pub(crate) fn of(
        values: impl IntoIterator<Item = f64>,
        significant: usize,
        least: usize,
        most: usize,
    ) -> Self {
        let mut range: Option<(f64, f64)> = None;
        for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
            let (low, high) = range.unwrap_or((value, value));
            range = Some((low.min(value), high.max(value)));
        }
        let Some((low, high)) = range else { return Self::Fixed(least) };
        let wanted = significant as i32 - 1 - low.log10().floor() as i32;
        if wanted > most as i32 + 1 || high >= 1e7 {
            return Self::Scientific(significant - 1);
        }
        Self::Fixed(wanted.clamp(least as i32, most as i32) as usize)
    }

    pub(crate) fn write(self, value: f64) -> String {
        match self {
            _ if value.is_nan() => ABSENT.into(),
            _ if value.is_infinite() => if value > 0.0 { "∞" } else { "−∞" }.into(),
            // A zero is exact: "0.000e0" would only puzzle.
            Self::Scientific(_) if value == 0.0 => "0".into(),
            Self::Scientific(digits) => format!("{value:.digits$e}"),
            Self::Fixed(_) if value.abs() >= 1e12 => format!("{value:.2e}"),
            Self::Fixed(digits) => {
                let text = format!("{value:.digits$}");
                // A negative figure that rounds to zero.
                match text.strip_prefix('-') {
                    Some(rest) if rest.bytes().all(|byte| byte == b'0' || byte == b'.') => rest.into(),
                    _ => text,
                }
            }
        }
    }

    pub(crate) fn write_or_absent(self, value: Option<f64>) -> String {
        value.map_or_else(|| ABSENT.into(), |value| self.write(value))
    }
}

/// Figures that differ by orders of magnitude, one under the other with their points aligned: each with this many
/// significant digits and no more, padded on the right with [`PAD`].
pub(crate) fn aligned(values: &[Option<f64>], significant: usize) -> Vec<String> {
    let known = values.iter().flatten().copied();
    if let scientific @ Digits::Scientific(_) = Digits::of(known, significant, 0, 7) {
        return values.iter().map(|value| scientific.write_or_absent(*value)).collect();
    }
    let texts: Vec<String> =
        values.iter().map(|value| Digits::of(*value, significant, 0, 7).write_or_absent(*value)).collect();
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, decimals)| decimals.len() + 1);
    let most = texts.iter().map(|text| decimals(text)).max().unwrap_or(0);
    texts
        .into_iter()
        // What has no digits has no point to align.
        .map(|text| if text.contains(char::is_numeric) { pad(&text, most - decimals(&text)) } else { text })
        .collect()
}

fn pad(text: &str, n: usize) -> String {
    text.chars().chain(std::iter::repeat_n(PAD, n)).collect()
}

/// A figure by itself, with this many significant digits.
pub(crate) fn single(value: f64, significant: usize) -> String {
    Digits::of([value], significant, 0, 7).write(value)
}

/// Millions of bytes, the unit of the size columns.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A size by itself: "8.79 MB", "1.23 GB".
pub fn size(bytes: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, unit)| bytes as f64 >= *unit) {
        Some((name, unit)) => format!("{} {name}", single(bytes as f64 / unit, 3)),
        None => format!("{bytes} B"),
    }
}

/// A number of weights as models are named: "4.39 M", "72.7 B".
pub fn weights(n: u64) -> String {
    let units = [("T", 1e12), ("B", 1e9), ("M", 1e6)];
    match units.iter().find(|(_, unit)| n as f64 >= *unit) {
        Some((name, unit)) => format!("{} {name}", single(n as f64 / unit, 3)),
        None => count(n as usize),
    }
}

/// A number of things, with commas: "44,115".
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// "1 item", "12 items": `thing` in the singular, its plural made with an s.
pub(crate) fn counted(n: usize, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A fraction in percent, without the sign: "90.63".
pub(crate) fn percent(fraction: f64) -> String {
    Digits::Fixed(2).write(100.0 * fraction)
}

/// A probability: "0.73", "0.012", and below a thousandth a bound.
pub(crate) fn probability(p: f64) -> String {
    match p {
        p if p.is_nan() => ABSENT.into(),
        p if p < 0.001 => "<0.001".into(),
        p if p < 0.1 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

/// A moment as [`timestamp`](crate::timestamp) writes it, for people: "2026-11-22 18:02 UTC". Anything else is kept.
pub(crate) fn moment(created: &str) -> String {
    match (created.get(..10), created.get(10..11), created.get(11..16), created.ends_with('Z')) {
        (Some(day), Some("T"), Some(time), true) => one_line(&format!("{day} {time} UTC")),
        _ => one_line(created),
    }
}

/// `text` broken at blanks into lines of at most `width` columns where it can be, all but the first indented.
pub(crate) fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for (i, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if column > 2 && column + 1 + length > width {
            out.push_str("\n  ");
            column = 2;
        } else if i > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
    out
}

/// `text` from outside without control characters, which could move a terminal's cursor or recolour what follows.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// The same in one line.
pub(crate) fn one_line(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_shows_three_digits_of_its_smallest_figure() {
        assert_eq!(Digits::of([8.788, 2.5134], 3, 0, 3), Digits::Fixed(2));
        assert_eq!(Digits::of([269.1, 77.04], 3, 0, 3), Digits::Fixed(1));
        assert_eq!(Digits::of([145_000.0, 38_000.0], 3, 0, 3), Digits::Fixed(0));
        assert_eq!(Digits::of([f64::NAN, 0.0, f64::INFINITY], 3, 2, 3), Digits::Fixed(2));
        assert_eq!(Digits::of([0.121, 0.000_042_1], 3, 4, 7), Digits::Fixed(7));
        assert_eq!(Digits::of([0.121, 0.000_000_042_1], 3, 4, 7), Digits::Scientific(2));
        assert_eq!(Digits::of([2.27, 1.9e9], 5, 0, 4), Digits::Scientific(4));
    }

    #[test]
    fn figures_without_a_value_are_marked() {
        assert_eq!(Digits::Fixed(2).write(f64::NAN), "—");
        assert_eq!(Digits::Fixed(2).write(f64::INFINITY), "∞");
        assert_eq!(Digits::Fixed(2).write_or_absent(None), "—");
        assert_eq!(Digits::Fixed(2).write(-0.001), "0.00");
        assert_eq!(Digits::Fixed(2).write(-0.25), "-0.25");
        assert_eq!(Digits::Scientific(2).write(0.0), "0");
        assert_eq!(Digits::Scientific(2).write(4.213e-8), "4.21e-8");
    }

    #[test]
    fn sizes_and_counts_read_as_people_write_them() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(8_787_992), "8.79 MB");
        assert_eq!(size(145_400_000_000), "145 GB");
        assert_eq!(weights(4_387_072), "4.39 M");
        assert_eq!(weights(72_706_203_648), "72.7 B");
        assert_eq!(weights(1_000), "1,000");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "window"), "1 window");
        assert_eq!(counted(0, "window"), "0 windows");
    }

    #[test]
    fn figures_of_many_magnitudes_stand_point_under_point() {
        let cells = aligned(&[None, Some(0.121), Some(0.003_119_8), Some(0.000_042_1), Some(1.69)], 3);
        assert_eq!(
            cells.iter().map(|cell| cell.replace(PAD, "_")).collect::<Vec<_>>(),
            ["—", "0.121____", "0.00312__", "0.0000421", "1.69_____"]
        );
        assert_eq!(aligned(&[Some(0.121), Some(1.2e-9)], 3), ["1.21e-1", "1.20e-9"]);
    }

    #[test]
    fn moments_and_lines_fit_a_terminal() {
        assert_eq!(moment("2026-11-22T18:02:30Z"), "2026-11-22 18:02 UTC");
        assert_eq!(moment("yesterday"), "yesterday");
        assert_eq!(moment("ééééééééé"), "ééééééééé");
        assert_eq!(wrap("one two three", 7), "one two\n  three\n");
        assert_eq!(wrap("unbreakable", 3), "unbreakable\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb"), "a\u{fffd}[31mb");
        assert_eq!(one_line(" a\n\tb\u{7} "), "a b\u{fffd}");
    }
}
