//! Reads safetensors headers.
//!
//! ```text
//! 0      u64     N, the header's length; little-endian, as everything
//! 8      N       JSON: {"__metadata__": {"format": "pt"},
//!                       "NAME": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, …}
//!                then spaces
//! 8 + N          data; offsets count from here
//! ```
//!
//! The parser is our own because each fault deserves its own error, and because the format's own reader takes
//! the last of two tensors with one name. Limits, all checked before anything is allocated for what they bound:
//! the header has at most 100 MB and fits the file; a shape has at most 8 dimensions; tensors tile the data
//! without overlap, gap or remainder. Memory stays within a small multiple of the header's length.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bitmill_tensor::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::checkpoint::is_addressable;
use crate::{Error, Region, foreign};

/// The format's own limit on the header's length.
const LONGEST_HEADER: u64 = 100_000_000;
const MOST_DIMENSIONS: usize = 8;

/// One tensor of a safetensors file.
#[derive(Debug, Clone)]
pub(crate) struct StTensor {
    pub file: Arc<Path>,
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Region,
}

/// The tensors of `file`, whose bytes are `region`, in the order of their data.
pub(crate) fn read(file: &Path, region: &Region) -> Result<Vec<StTensor>, Error> {
    if let Some(error) = foreign::stand_in(file, region) {
        return Err(error);
    }
    let file_bytes = region.len() as u64;
    let truncated = |what: &str, needed: u64, found: u64| Error::Truncated {
        file: file.to_owned(),
        what: what.to_owned(),
        needed,
        found,
    };
    let Some(length) = region.first_chunk::<8>() else {
        return Err(truncated("the header's length", 8, file_bytes));
    };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > LONGEST_HEADER {
        return Err(Error::HeaderTooLong { file: file.to_owned(), header_bytes, limit: LONGEST_HEADER });
    }
    if header_bytes > file_bytes - 8 {
        return Err(truncated("the header", header_bytes, file_bytes - 8));
    }
    let data_start = 8 + header_bytes as usize;
    let mut entries = parse_header(file, &region[8..data_start])?;

    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let available = file_bytes - data_start as u64;
    let shared: Arc<Path> = file.into();
    let mut tensors: Vec<StTensor> = Vec::with_capacity(entries.len());
    let mut at = 0u64;
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        if end < begin {
            return Err(Error::HeaderSyntax {
                file: file.to_owned(),
                problem: format!("`{name}` ends at {end}, before it begins at {begin}"),
            });
        }
        if end > available {
            return Err(Error::OutOfBounds { file: file.to_owned(), tensor: name, end, available });
        }
        if begin < at {
            let other = tensors.last().map(|tensor| tensor.name.clone()).unwrap_or_default();
            return Err(Error::Overlap { file: file.to_owned(), tensor: name, other });
        }
        if begin > at {
            return Err(Error::Gap { file: file.to_owned(), at, bytes: begin - at });
        }
        at = end;
        let Some(dtype) = dtype_by_name(&entry.dtype) else {
            return Err(Error::UnknownDtype { file: file.to_owned(), tensor: name, dtype: entry.dtype });
        };
        let expected = entry
            .shape
            .iter()
            .try_fold(dtype.size_bytes() as u64, |bytes, &size| bytes.checked_mul(size))
            .filter(|&bytes| bytes <= isize::MAX as u64);
        let Some(expected) = expected else {
            return Err(Error::ShapeOverflow { file: file.to_owned(), tensor: name, shape: entry.shape });
        };
        if end - begin != expected {
            return Err(Error::TensorBytes {
                file: file.to_owned(),
                tensor: name,
                found: end - begin,
                expected,
            });
        }
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|&size| usize::try_from(size).ok()).collect();
        let Some(shape) = shape.filter(|shape| is_addressable(shape)) else {
            return Err(Error::ShapeOverflow { file: file.to_owned(), tensor: name, shape: entry.shape });
        };
        let bytes = region.slice(data_start + begin as usize..data_start + end as usize);
        tensors.push(StTensor { file: shared.clone(), name, dtype, shape, bytes });
    }
    if at < available {
        return Err(Error::Gap { file: file.to_owned(), at, bytes: available - at });
    }
    Ok(tensors)
}

fn parse_header(file: &Path, header: &[u8]) -> Result<Vec<(String, Entry)>, Error> {
    let text = std::str::from_utf8(header)
        .map_err(|error| Error::HeaderNotUtf8 { file: file.to_owned(), at: error.valid_up_to() })?;
    let syntax = |problem: String| Error::HeaderSyntax { file: file.to_owned(), problem };
    if !text.starts_with('{') {
        return Err(syntax("it does not begin with `{`".to_owned()));
    }
    let header: Header = serde_json::from_str(text).map_err(|error| syntax(error.to_string()))?;
    // Two tensors of one name have either the same offsets or different ones: in both cases the name says more
    // than the overlap or the gap that would be found first.
    let mut names: Vec<&str> = header.0.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::DuplicateTensor { file: file.to_owned(), tensor: pair[0].to_owned() });
    }
    Ok(header.0)
}

fn dtype_by_name(name: &str) -> Option<Dtype> {
    const ALL: [Dtype; 16] = [
        Dtype::Bool,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8E4M3,
        Dtype::F8E5M2,
        Dtype::F8E8M0,
        Dtype::U16,
        Dtype::I16,
        Dtype::F16,
        Dtype::BF16,
        Dtype::U32,
        Dtype::I32,
        Dtype::F32,
        Dtype::U64,
        Dtype::I64,
        Dtype::F64,
    ];
    ALL.into_iter().find(|dtype| dtype.name() == name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    #[serde(deserialize_with = "short_list")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Entries in the order written, so that a repeated name is seen.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn short_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Sizes;
    impl<'de> Visitor<'de> for Sizes {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MOST_DIMENSIONS} sizes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut sizes = Vec::new();
            while let Some(size) = seq.next_element()? {
                if sizes.len() == MOST_DIMENSIONS {
                    return Err(A::Error::custom(format!(
                        "a shape of more than {MOST_DIMENSIONS} dimensions"
                    )));
                }
                sizes.push(size);
            }
            Ok(sizes)
        }
    }
    deserializer.deserialize_seq(Sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &[u8], data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn parse(bytes: Vec<u8>) -> Result<Vec<StTensor>, Error> {
        read(Path::new("x.safetensors"), &Region::from_vec(bytes))
    }

    fn parse_header(header: &str, data: usize) -> Result<Vec<StTensor>, Error> {
        parse(file(header.as_bytes(), data))
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data() {
        let header = r#"{"b":{"dtype":"F16","shape":[2,2],"data_offsets":[4,12]},
            "__metadata__":{"format":"pt"},"a":{"shape":[],"dtype":"F32","data_offsets":[0,4]}}   "#;
        let tensors = parse_header(header, 12).unwrap();
        assert_eq!(tensors[0].name, "a");
        assert_eq!(tensors[0].shape, [0usize; 0]);
        assert_eq!(tensors[1].name, "b");
        assert_eq!((tensors[1].dtype, tensors[1].bytes.len()), (Dtype::F16, 8));
    }

    #[test]
    fn refuses_a_header_length_near_two_to_the_63() {
        for length in [u64::MAX, 1 << 63, (1 << 63) - 1, LONGEST_HEADER + 1] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(b"{}");
            assert!(
                matches!(parse(bytes), Err(Error::HeaderTooLong { header_bytes, .. }) if header_bytes == length)
            );
        }
    }

    #[test]
    fn refuses_a_file_shorter_than_its_header_says() {
        assert!(matches!(parse(vec![1, 2, 3]), Err(Error::Truncated { needed: 8, found: 3, .. })));
        let mut bytes = 50u64.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert!(matches!(parse(bytes), Err(Error::Truncated { needed: 50, found: 2, .. })));
    }

    #[test]
    fn refuses_truncated_data_and_names_the_tensor() {
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let error = parse_header(header, 7).unwrap_err();
        assert!(matches!(&error, Error::OutOfBounds { tensor, end: 8, available: 7, .. } if tensor == "a"));
        assert!(error.hint().unwrap().contains("incomplete"));
    }

    #[test]
    fn refuses_a_header_that_is_not_utf8() {
        assert!(matches!(parse(file(b"{\"\xff\":1}", 0)), Err(Error::HeaderNotUtf8 { at: 2, .. })));
    }

    #[test]
    fn refuses_malformed_headers() {
        for header in [
            "",
            "[]",
            " {}",
            "{",
            r#"{"a":1}"#,
            r#"{"a":{"dtype":"F32","shape":[1]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}}"#,
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            "{} x",
        ] {
            assert!(matches!(parse_header(header, 4), Err(Error::HeaderSyntax { .. })), "{header}");
        }
        // Deep nesting ends in an error, not in a stack overflow.
        let deep = format!("{{\"__metadata__\":{}1", "[".repeat(100_000));
        assert!(matches!(parse_header(&deep, 0), Err(Error::HeaderSyntax { .. })));
    }

    #[test]
    fn rejects_duplicate_tensor_names() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(
            matches!(parse_header(header, 8), Err(Error::DuplicateTensor { tensor, .. }) if tensor == "a")
        );
    }

    #[test]
    fn rejects_overlaps_gaps_and_remainders() {
        let two = |begin: u64| {
            format!(
                r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},
                "b":{{"dtype":"F32","shape":[2],"data_offsets":[{begin},{}]}}}}"#,
                begin + 8
            )
        };
        assert!(parse_header(&two(8), 16).is_ok());
        assert!(matches!(
            parse_header(&two(4), 16),
            Err(Error::Overlap { tensor, other, .. }) if tensor == "b" && other == "a"
        ));
        assert!(matches!(parse_header(&two(12), 20), Err(Error::Gap { at: 8, bytes: 4, .. })));
        assert!(matches!(parse_header(&two(8), 17), Err(Error::Gap { at: 16, bytes: 1, .. })));
        assert!(matches!(parse_header("{}", 3), Err(Error::Gap { at: 0, bytes: 3, .. })));
    }

    #[test]
    fn rejects_lengths_that_are_not_the_shapes() {
        let header = r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,8]}}"#;
        assert!(matches!(parse_header(header, 8), Err(Error::TensorBytes { found: 8, expected: 6, .. })));
    }

    #[test]
    fn rejects_shapes_that_overflow() {
        for shape in [
            "4294967296,4294967296",
            "9223372036854775807",
            "18446744073709551615,2",
            "4294967296,4294967296,0",
        ] {
            let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}}}"#);
            assert!(matches!(parse_header(&header, 0), Err(Error::ShapeOverflow { .. })), "{shape}");
        }
    }

    #[test]
    fn rejects_dtypes_it_does_not_know() {
        let header = r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#;
        assert!(matches!(parse_header(header, 1), Err(Error::UnknownDtype { dtype, .. }) if dtype == "F4"));
    }
}
