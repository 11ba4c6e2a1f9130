//! What pages are compressed with.

use std::borrow::Cow;
use std::io::Read;

use super::Problem;

/// `bytes` as codec number `codec` makes `length` bytes of them.
pub(super) fn unpack(codec: i64, bytes: &[u8], length: usize) -> Result<Cow<'_, [u8]>, Problem> {
    let out = match codec {
        0 => Cow::Borrowed(bytes),
        1 => Cow::Owned(snappy(bytes, length)?),
        2 => Cow::Owned(all_of(flate2::read::MultiGzDecoder::new(bytes), length)?),
        6 => {
            let zstd = ruzstd::decoding::StreamingDecoder::new(bytes);
            Cow::Owned(all_of(zstd.map_err(|error| format!("Zstandard: {error}"))?, length)?)
        }
        other => {
            let name = match other {
                3 => "LZO",
                4 => "Brotli",
                5 | 7 => "LZ4",
                _ => "an unknown codec",
            };
            return Err(format!("it is compressed with {name}; bitmill reads Snappy, gzip and Zstandard"));
        }
    };
    if out.len() == length {
        Ok(out)
    } else {
        Err(format!("a page unpacks to {} bytes of {length}", out.len()))
    }
}

fn snappy(bytes: &[u8], length: usize) -> Result<Vec<u8>, Problem> {
    // Three bytes make 64 at most: what claims more is not allocated for.
    let claimed = snap::raw::decompress_len(bytes).map_err(|error| format!("Snappy: {error}"))?;
    if claimed != length || claimed / 32 > bytes.len() {
        return Err(format!("a page of {} bytes cannot unpack to {length}", bytes.len()));
    }
    snap::raw::Decoder::new().decompress_vec(bytes).map_err(|error| format!("Snappy: {error}"))
}

/// What `from` gives, up to a byte more than `length`.
fn all_of(from: impl Read, length: usize) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::new();
    let most = (length as u64).saturating_add(1);
    from.take(most).read_to_end(&mut out).map_err(|error| format!("a page does not unpack: {error}"))?;
    Ok(out)
}
