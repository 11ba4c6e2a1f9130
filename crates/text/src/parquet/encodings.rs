//! How pages hold levels and strings.

use super::thrift::{varint, zigzag};
use super::{Problem, Room};

const SHORT: &str = "a page ends too early";

/// Strings in the order of their values: some bytes of a page each.
pub(super) type Strings<'p> = Vec<std::borrow::Cow<'p, [u8]>>;

/// `count` numbers of `width` bits in runs: a varint, then a run's value, or groups of eight packed numbers.
pub(super) fn runs(mut bytes: &[u8], width: u32, count: usize, room: &mut Room) -> Result<Vec<u32>, Problem> {
    if width > 32 {
        return Err(format!("numbers of {width} bits"));
    }
    room.take(count.saturating_mul(4))?;
    let mut out = Vec::with_capacity(count);
    while out.len() < count {
        let head = varint(&mut bytes).ok_or(SHORT)?;
        let left = count - out.len();
        let run = usize::try_from(head >> 1).unwrap_or(usize::MAX);
        if head & 1 == 0 {
            let (value, rest) = bytes.split_at_checked(width.div_ceil(8) as usize).ok_or(SHORT)?;
            bytes = rest;
            let value = value.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            out.resize(out.len() + run.min(left), value);
        } else {
            let here = run.saturating_mul(8).min(left);
            // The last group may lack what pads it.
            let packed = here.checked_mul(width as usize).ok_or(SHORT)?.div_ceil(8);
            if bytes.len() < packed {
                return Err(SHORT.to_owned());
            }
            out.extend((0..here).map(|at| bits(bytes, at * width as usize, width) as u32));
            bytes = &bytes[run.saturating_mul(width as usize).min(bytes.len())..];
        }
        if run == 0 {
            return Err("a run of nothing".to_owned());
        }
    }
    Ok(out)
}

/// `width` bits, up to 64, from bit `start` on, lowest first. Bits beyond the end are 0.
fn bits(bytes: &[u8], start: usize, width: u32) -> u64 {
    let mut word = [0; 16];
    let from = bytes.get(start / 8..).unwrap_or_default();
    let here = from.len().min(9);
    word[..here].copy_from_slice(&from[..here]);
    let mask = if width == 0 { 0 } else { u64::MAX >> (64 - width) };
    (u128::from_le_bytes(word) >> (start % 8)) as u64 & mask
}

/// `count` strings, each after its length.
pub(super) fn plain(mut bytes: &[u8], count: usize) -> Result<Strings<'_>, Problem> {
    let mut out = Vec::new();
    for _ in 0..count {
        let (length, rest) = bytes.split_first_chunk().ok_or(SHORT)?;
        let (string, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(SHORT)?;
        out.push(string.into());
        bytes = rest;
    }
    Ok(out)
}

/// `count` strings after all of their lengths.
pub(super) fn delta_length<'p>(
    bytes: &'p [u8],
    count: usize,
    room: &mut Room,
) -> Result<Strings<'p>, Problem> {
    let (lengths, mut rest) = deltas(bytes, count, room)?;
    let mut out = Vec::with_capacity(count);
    for length in lengths {
        let (string, after) = rest.split_at_checked(length).ok_or(SHORT)?;
        out.push(string.into());
        rest = after;
    }
    Ok(out)
}

/// `count` strings, each as the beginning of the one before it and what follows.
pub(super) fn delta_strings<'p>(
    bytes: &'p [u8],
    count: usize,
    room: &mut Room,
) -> Result<Strings<'p>, Problem> {
    let (prefixes, rest) = deltas(bytes, count, room)?;
    let mut out: Strings<'p> = delta_length(rest, count, room)?;
    for (at, prefix) in prefixes.into_iter().enumerate() {
        if prefix == 0 {
            continue;
        }
        let before = at
            .checked_sub(1)
            .and_then(|before| out[before].get(..prefix))
            .ok_or("a string has no beginning")?;
        room.take(before.len() + out[at].len())?;
        let whole = [before, &out[at]].concat();
        out[at] = whole.into();
    }
    Ok(out)
}

/// `count` sizes that differ little from one to the next, and what follows them.
fn deltas<'p>(mut bytes: &'p [u8], count: usize, room: &mut Room) -> Result<(Vec<usize>, &'p [u8]), Problem> {
    let mut number = || varint(&mut bytes).and_then(|number| usize::try_from(number).ok());
    let (block, minis, total) = match (number(), number(), number()) {
        (Some(block), Some(minis), Some(total)) => (block, minis, total),
        _ => return Err(SHORT.to_owned()),
    };
    let first = zigzag(varint(&mut bytes).ok_or(SHORT)?);
    if total != count || minis == 0 || !block.is_multiple_of(minis) || !(block / minis).is_multiple_of(32) {
        return Err(format!("{total} sizes in {minis} parts of blocks of {block}, for {count} strings"));
    }
    let mini = block / minis;
    room.take(count.saturating_mul(16))?;
    let mut values = Vec::with_capacity(count);
    if count > 0 {
        values.push(first);
    }
    let mut last = first;
    while values.len() < count {
        let least = zigzag(varint(&mut bytes).ok_or(SHORT)?);
        let (widths, rest) = bytes.split_at_checked(minis).ok_or(SHORT)?;
        bytes = rest;
        for width in widths {
            if values.len() == count {
                break;
            }
            if *width > 64 {
                return Err(format!("numbers of {width} bits"));
            }
            let packed = (mini / 8).checked_mul(usize::from(*width)).ok_or(SHORT)?;
            let (packed, rest) = bytes.split_at_checked(packed).ok_or(SHORT)?;
            bytes = rest;
            for at in 0..mini.min(count - values.len()) {
                let more = bits(packed, at * usize::from(*width), u32::from(*width)) as i64;
                last = last.wrapping_add(least).wrapping_add(more);
                values.push(last);
            }
        }
    }
    let sizes =
        values.into_iter().map(|value| usize::try_from(value).map_err(|_| format!("a size of {value}")));
    Ok((sizes.collect::<Result<_, _>>()?, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_repeat_and_pack() {
        let mut room = Room(1000);
        // Five times 3, then eight packed numbers of three bits: 0 to 7 (the format's own example).
        let bytes = [10, 3, 3, 0b1000_1000, 0b1100_0110, 0b1111_1010];
        assert_eq!(runs(&bytes, 3, 11, &mut room).unwrap(), [3, 3, 3, 3, 3, 0, 1, 2, 3, 4, 5]);
        assert_eq!(runs(&[8], 0, 4, &mut room).unwrap(), [0; 4]);
        assert!(runs(&bytes[..4], 3, 13, &mut room).is_err());
        assert!(runs(&[0, 3], 3, 1, &mut room).is_err(), "a run of nothing would never end");
        assert!(
            runs(&[0xfe, 0xff, 0xff, 0xff, 15, 1], 1, 1 << 30, &mut room).is_err(),
            "more than there is room for"
        );
    }

    #[test]
    fn bits_are_taken_across_bytes() {
        let bytes = 0x0123_4567_89ab_cdef_u64.to_le_bytes();
        assert_eq!(bits(&bytes, 0, 64), 0x0123_4567_89ab_cdef);
        assert_eq!(bits(&bytes, 4, 12), 0xcde);
        assert_eq!(bits(&bytes, 60, 8), 0);
        assert_eq!(bits(&bytes, 3, 0), 0);
    }
}
