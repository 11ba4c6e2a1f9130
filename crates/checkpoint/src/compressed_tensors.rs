//! compressed-tensors: what its config declares, and `pack-quantized`: what a packed matrix is stored as, read and written.
//!
//! ```text
//! NAME.weight_packed      I32 [out, ceil(in·bits/32)]   code i of a row at bit i·bits, least significant first,
//!                                                       plus 2^(bits−1); words run along `in`
//! NAME.weight_scale       F16|BF16|F32 [out, groups]    groups = in / group_size, or 1
//! NAME.weight_shape       I64 [2]                       out, in
//! NAME.weight_zero_point  I32 [ceil(out·bits/32), groups]   asymmetric only: packed along `out`, plus 2^(bits−1);
//!                         I8 [1] where one scale is for the whole matrix
//! NAME.weight_g_idx       I32 [in]                      the group of each column, where groups have an order of their own
//! ```
//!
//! Before 0.18 the library packed codes of 3, 5, 6 and 7 bits into words of ⌊32/bits⌋ whole codes: then there are ceil(in / ⌊32/bits⌋) words a row,
//! and ceil(out / ⌊32/bits⌋) of zero points. The shapes tell which it is; where they are the same for both, as a few short rows have it, it is
//! the stream.
//!
//! config.json's `quantization_config` says which widths and group sizes there are; which matrix has which
//! follows from its tensors, so that patterns in `targets` need not be matched. Read are 2 to 8 bits,
//! symmetric and asymmetric, by group, by channel or by tensor, `marlin-24`, and the forms of `scaled` and `sparse_bitmask`; anything
//! else is an error that names it.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use bitmill_tensor::{
    Bits, ColumnPacking, Dtype, Encoding, Granularity, Grouped, Scaled, WeightView, ZeroPoint,
};
use serde_json::{Map, Value, json};

use crate::checkpoint::Parts;
use crate::config_json::Fields;
use crate::safetensors_in::StTensor;
use crate::scaled::{self, Activations};
use crate::{Error, Region, StTensorSpec, columns, marlin24, sparse_bitmask};

pub(crate) const PACKED: &str = "weight_packed";
pub(crate) const SCALE: &str = "weight_scale";
const SHAPE: &str = "weight_shape";
pub(crate) const ZERO_POINT: &str = "weight_zero_point";
pub(crate) const GROUP_OF: &str = "weight_g_idx";

/// The version of the library whose files these are: the first that today's transformers accepts.
const VERSION: &str = "0.15.0";
/// The first that has 6-bit floats.
const VERSION_OF_MXFP6: &str = "0.20.0";

/// One of the ways to quantize that config.json declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// Modules by name, patterns (`re:…`) or classes (`Linear`).
    targets: Vec<String>,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Codes in words.
    Packed {
        bits: Bits,
        scales: Scales,
        zero_point: ZeroPoint,
        /// Columns are in groups by an order of their own.
        is_ordered: bool,
    },
    /// Numbers by themselves.
    Scaled {
        /// The height and width of what shares a scale, where it is a block.
        block: Option<(NonZeroUsize, NonZeroUsize)>,
        /// Columns are in groups by an order of their own.
        is_ordered: bool,
    },
}

/// Which codes share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scales {
    Group(NonZeroUsize),
    Row,
    Matrix,
}

impl Scheme {
    /// Height and width of the blocks that it declares.
    pub fn block(&self) -> Option<(NonZeroUsize, NonZeroUsize)> {
        match self.kind {
            Kind::Scaled { block, .. } => block,
            Kind::Packed { .. } => None,
        }
    }

    /// Whether it is of numbers by themselves.
    pub fn is_scaled(&self) -> bool {
        matches!(self.kind, Kind::Scaled { .. })
    }

    /// Whether it declares that columns are in groups by an order of their own.
    pub fn is_ordered(&self) -> bool {
        match self.kind {
            Kind::Packed { is_ordered, .. } | Kind::Scaled { is_ordered, .. } => is_ordered,
        }
    }
}

/// The forms that are read.
const FORMATS: [&str; 11] = [
    "dense",
    "pack-quantized",
    "marlin-24",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp6-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
];

/// The schemes of a `quantization_config` of this method.
pub(crate) fn schemes(fields: &Fields) -> Result<Vec<Scheme>, Error> {
    let file = fields.file;
    let unsupported = |what: String| Error::UnsupportedQuantization { file: file.to_owned(), what };
    let whole = format_of(fields)?;
    if let Some(status) = fields.text("quantization_status")?
        && status != "compressed"
    {
        return Err(unsupported(format!("the status `{status}`")));
    }
    let sparse = match fields.get("sparsity_config") {
        Some(config) => sparse_bitmask::is_declared(file, config)?,
        None => false,
    };
    // Of a cache that runtimes keep in fewer bits; what is computed here does without.
    if fields.get("kv_cache_scheme").is_some_and(|scheme| !scheme.is_object()) {
        return Err(fields.wrong("kv_cache_scheme", "expected an object".to_owned()));
    }
    for key in ["sparsity_config", "moe_sparsity_config", "transform_config"] {
        // Older files write `sparsity_config: {"format": "dense", …}` for none.
        let is_empty = |value: &Value| {
            let format = value.get("format").and_then(Value::as_str);
            value.as_object().is_some_and(Map::is_empty)
                || (key == "sparsity_config" && (sparse || format == Some("dense")))
        };
        if fields.get(key).is_some_and(|value| !is_empty(value)) {
            return Err(unsupported(format!("a `{key}`")));
        }
    }
    if sparse && fields.get("config_groups").is_none() {
        return Ok(Vec::new());
    }
    let Some(Value::Object(groups)) = fields.get("config_groups") else {
        return Err(fields.wrong("config_groups", "expected an object of groups".to_owned()));
    };
    let mut schemes = Vec::new();
    for (name, group) in groups {
        let Value::Object(map) = group else {
            let problem = match group.is_array() {
                true => "a preset's name with its modules is not read, only what it stands for",
                false => "expected an object",
            };
            return Err(fields.wrong("config_groups", format!("`{name}`: {problem}")));
        };
        // Of what goes into a cache or into attention alone.
        if map.get("weights").is_some_and(Value::is_null) {
            continue;
        }
        let group = Fields { file, prefix: "quantization_config.config_groups", map };
        let format = format_of(&group)?.or(whole).unwrap_or("pack-quantized");
        if group.get("output_activations").is_some() {
            return Err(unsupported(format!("quantized activations (`{name}.output_activations`)")));
        }
        let Some(Value::Object(map)) = group.get("weights") else {
            return Err(group.wrong("weights", format!("`{name}`: expected an object")));
        };
        let targets = match group.get("targets") {
            None => Vec::new(),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|_| group.wrong("targets", format!("`{name}`: expected a list of names")))?,
        };
        let weights = Fields { file, prefix: "quantization_config.config_groups.weights", map };
        let kind = match (format, weights.text("type")?) {
            ("pack-quantized" | "marlin-24", None | Some("int")) => packed_kind(&weights)?,
            // Whether these are in words is seen by their parts.
            ("mixed-precision", None | Some("int")) => {
                packed_kind(&weights).or_else(|_| scaled_kind(&weights))?
            }
            ("pack-quantized" | "marlin-24", Some(other)) => {
                return Err(unsupported(format!("weights of type `{other}`")));
            }
            _ => scaled_kind(&weights)?,
        };
        schemes.push(Scheme { targets, kind });
    }
    Ok(schemes)
}

/// The form that a config or one of its groups names.
fn format_of<'a>(fields: &Fields<'a>) -> Result<Option<&'a str>, Error> {
    match fields.text("format")? {
        Some(other) if !FORMATS.contains(&other) => Err(Error::UnsupportedQuantization {
            file: fields.file.to_owned(),
            what: format!("the format `{other}`"),
        }),
        format => Ok(format),
    }
}

/// The height and width that a key holds, if it is there.
fn block(fields: &Fields, key: &str) -> Result<Option<(NonZeroUsize, NonZeroUsize)>, Error> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    // Older files write "128x128".
    let sizes: Option<Vec<NonZeroUsize>> = match value {
        Value::String(text) => text.split('x').map(|size| size.parse().ok()).collect(),
        other => serde_json::from_value(other.clone()).ok(),
    };
    match sizes.as_deref() {
        Some(&[rows, cols]) => Ok(Some((rows, cols))),
        _ => Err(fields.wrong(key, "expected a height and a width".to_owned())),
    }
}

/// The one scheme of a `quantization_config` of the method `fp8`.
pub(crate) fn fp8_scheme(fields: &Fields) -> Result<Scheme, Error> {
    let kind = Kind::Scaled { block: block(fields, "weight_block_size")?, is_ordered: false };
    Ok(Scheme { targets: Vec::new(), kind })
}

fn scaled_kind(weights: &Fields) -> Result<Kind, Error> {
    Ok(Kind::Scaled { block: block(weights, "block_structure")?, is_ordered: is_ordered(weights)? })
}

/// Whether columns are in groups by the order of what activations they have.
fn is_ordered(weights: &Fields) -> Result<bool, Error> {
    match weights.get("actorder") {
        None | Some(Value::Bool(false)) => Ok(false),
        Some(Value::Bool(true)) => Ok(true),
        Some(Value::String(order)) if matches!(order.as_str(), "weight" | "static") => Ok(false),
        Some(Value::String(order)) if matches!(order.as_str(), "group" | "dynamic") => Ok(true),
        Some(other) => Err(Error::UnsupportedQuantization {
            file: weights.file.to_owned(),
            what: format!("the activation order {other}"),
        }),
    }
}

fn packed_kind(weights: &Fields) -> Result<Kind, Error> {
    let unsupported = |what: String| Error::UnsupportedQuantization { file: weights.file.to_owned(), what };
    let bits = weights.optional_size("num_bits", 64)?.unwrap_or(8);
    let bits = match (bits, u8::try_from(bits).ok().and_then(Bits::new)) {
        (2.., Some(bits)) => bits,
        _ => return Err(unsupported(format!("a width of {bits} bits"))),
    };
    let is_ordered = is_ordered(weights)?;
    match weights.get("dynamic") {
        None | Some(Value::Bool(false)) => {}
        Some(other) => return Err(unsupported(format!("`dynamic` weights ({other})"))),
    }
    // −1 is the library's older way to say "channel".
    let is_row = weights.get("group_size").and_then(Value::as_i64) == Some(-1);
    let size = match is_row {
        true => None,
        false => weights.optional_size("group_size", 1 << 30)?.and_then(NonZeroUsize::new),
    };
    let scales = match (weights.text("strategy")?, size) {
        (Some("group"), Some(size)) | (None, Some(size)) => Scales::Group(size),
        (Some("channel"), _) => Scales::Row,
        (None, None) if is_row => Scales::Row,
        (Some("group"), None) => return Err(weights.wrong("group_size", "missing".to_owned())),
        // What the library takes a config without either for.
        (Some("tensor"), _) | (None, None) => Scales::Matrix,
        (Some(other), _) => return Err(unsupported(format!("the strategy `{other}`"))),
    };
    let zero_point = match weights.flag("symmetric")? {
        None | Some(true) => ZeroPoint::Symmetric,
        Some(false) => ZeroPoint::Asymmetric,
    };
    Ok(Kind::Packed { bits, scales, zero_point, is_ordered })
}

/// The matrix that a stored tensor is a part of (`….weight`), if its name says so.
pub(crate) fn matrix_of(name: &str) -> Option<(String, &'static str)> {
    let (module, part) = name.rsplit_once('.')?;
    let own = [PACKED, SCALE, SHAPE, ZERO_POINT, GROUP_OF].into_iter().chain(marlin24::PARTS);
    let part = own.into_iter().find(|known| *known == part)?;
    Some((format!("{module}.weight"), part))
}

/// A matrix put together from the tensors it is stored as.
pub(crate) struct StoredMatrix {
    pub shape: [usize; 2],
    pub encoding: Encoding,
    pub parts: Parts,
}

/// Puts the matrix `name` together from its stored `parts`, by the last part of their names.
pub(crate) fn assemble(
    name: &str,
    mut parts: HashMap<&'static str, StTensor>,
    schemes: &[Scheme],
) -> Result<StoredMatrix, Error> {
    let wrong = |problem: String| Error::PackedTensor { tensor: name.to_owned(), problem };
    let mut take = |part: &str| parts.remove(part);
    let (Some(packed), Some(scale), Some(shape)) = (take(PACKED), take(SCALE), take(SHAPE)) else {
        return Err(wrong(format!("`{PACKED}`, `{SCALE}` and `{SHAPE}` must all be there")));
    };
    let (zero_point, group_of) = (take(ZERO_POINT), take(GROUP_OF));
    // A single zero point is a number by itself.
    let in_words = zero_point.as_ref().filter(|part| part.bytes.len() != 1);
    for part in [Some(&packed), in_words, group_of.as_ref()].into_iter().flatten() {
        if part.dtype != Dtype::I32 {
            return Err(wrong(format!("`{}` is {} where I32 is expected", part.name, part.dtype)));
        }
    }
    let scale_type = scale.dtype.float().ok_or_else(|| wrong(format!("scales of dtype {}", scale.dtype)))?;
    let [out_features, in_features] = stored_shape(&shape)
        .ok_or_else(|| wrong(format!("`{SHAPE}` does not hold two sizes that can be addressed")))?;
    // A group that names the module is the one; patterns and classes leave it to the shapes.
    let module = name.trim_end_matches(".weight");
    let named: Vec<&Scheme> =
        schemes.iter().filter(|scheme| scheme.targets.iter().any(|to| to == module)).collect();
    let candidates = if named.is_empty() { schemes.iter().collect() } else { named };
    let mut found: Option<Fit> = None;
    let mut uneven = None;
    // Of groups that differ in this alone, the parts say which it is.
    let mut must_be_ordered = true;
    for scheme in candidates {
        let Kind::Packed { bits, scales, zero_point: own_zero_point, is_ordered } = scheme.kind else {
            continue;
        };
        let is_single = scales == Scales::Matrix;
        let group_size = match scales {
            Scales::Group(size) => Some(size),
            Scales::Row | Scales::Matrix => NonZeroUsize::new(in_features),
        };
        let Some(group_size) = group_size else { continue };
        let layout = Grouped { bits, group_size, zero_point: own_zero_point, scale: scale_type };
        let groups = layout.groups_per_row(in_features);
        let fits_words = |words_of: &dyn Fn(usize) -> usize| {
            let zeros_fit = match (layout.zero_point, &zero_point) {
                (ZeroPoint::Symmetric, zeros) => zeros.is_none(),
                (ZeroPoint::Asymmetric, Some(zeros)) if is_single => zeros.bytes.len() == 1,
                (ZeroPoint::Asymmetric, Some(zeros)) => zeros.shape == [words_of(out_features), groups],
                (ZeroPoint::Asymmetric, None) => false,
            };
            let scales_fit = match is_single {
                true => scale.bytes.len() == scale_type.size_bytes(),
                false => scale.shape == [out_features, groups],
            };
            packed.shape == [out_features, words_of(in_features)] && scales_fit && zeros_fit
        };
        let is_stream = fits_words(&|codes| layout.words_per_row(codes));
        let fits = is_stream || fits_words(&|codes| codes.div_ceil(layout.codes_per_word()));
        let layout = Fit { layout, in_words: !is_stream, is_single };
        must_be_ordered &= is_ordered || !fits;
        if fits && !in_features.is_multiple_of(group_size.get()) {
            // Its last group would be cut short: an error, unless another scheme fits.
            uneven = Some(layout);
            continue;
        }
        if fits && found.is_some_and(|other| other != layout) {
            return Err(wrong("more than one of the config's groups fits its shapes".to_owned()));
        }
        if fits {
            found = Some(layout);
        }
    }
    let Some(Fit { layout, in_words, is_single }) = found.or(uneven) else {
        let zero_points =
            zero_point.map_or("no zero points".to_owned(), |part| format!("zero points {:?}", part.shape));
        return Err(wrong(format!(
            "none of the config's {} groups fits a [{out_features}, {in_features}] matrix with codes {:?}, scales \
             {:?} and {zero_points}",
            schemes.len(),
            packed.shape,
            scale.shape,
        )));
    };
    let (packed, mut scales, mut zero_points) =
        (packed.bytes, scale.bytes, zero_point.map(|part| part.bytes));
    if is_single {
        scales = repeated(&scales, out_features);
        zero_points = zero_points.map(|zero| zero_words(zero[0] as i8, out_features, &layout));
    }
    let group_of = match group_of {
        Some(part) => group_order(name, part, in_features, layout.groups_per_row(in_features))?,
        None if must_be_ordered => return Err(wrong(order_is_missing())),
        None => None,
    };
    if group_of.is_some() && !in_words && 32 % layout.bits.get() != 0 {
        return Err(wrong(format!("codes of {} bits as one stream beside a `{GROUP_OF}`", layout.bits)));
    }
    let parts = match in_words || group_of.is_some() {
        false => Parts::Grouped { layout, packed, scales, zero_points },
        true => Parts::Columns {
            layout,
            packing: ColumnPacking::Words,
            packed,
            scales,
            zero_points: zero_points.unwrap_or(Region::from_static(&[])),
            group_of,
            places: None,
        },
    };
    let encoding = Encoding::Grouped(layout);
    WeightView::new(out_features, in_features, parts.data(encoding))
        .map_err(|source| Error::View { tensor: name.to_owned(), source })?;
    Ok(StoredMatrix { shape: [out_features, in_features], encoding, parts })
}

/// How a packed matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fit {
    layout: Grouped,
    /// Words hold whole codes, of a width that does not divide 32.
    in_words: bool,
    /// One scale is for all of it.
    is_single: bool,
}

/// The group of each column, if it is another than their order makes it. −1 is what the library has before it knows any.
///
/// # Errors
/// [`Error::PackedTensor`] unless it names a group for each of `in_features` columns.
pub(crate) fn group_order(
    name: &str,
    part: StTensor,
    in_features: usize,
    groups: usize,
) -> Result<Option<Region>, Error> {
    if part.bytes.as_chunks::<4>().0.iter().all(|group| i32::from_le_bytes(*group) == -1) {
        return Ok(None);
    }
    columns::group_order(name, part, in_features, groups)
}

/// What is wrong where columns are said to be in an order that is not there.
pub(crate) fn order_is_missing() -> String {
    format!("its columns are declared in the order of activations, without a `{GROUP_OF}`")
}

/// As many scales as `rows`, each that of the whole matrix.
pub(crate) fn repeated(scale: &[u8], rows: usize) -> Region {
    Region::from_vec(scale.repeat(rows))
}

/// The words of as many zero points as `rows`, each the same.
fn zero_words(zero: i8, rows: usize, layout: &Grouped) -> Region {
    let bits = usize::from(layout.bits.get());
    let code = (zero as u8).wrapping_add(1 << (bits - 1)) as usize & ((1 << bits) - 1);
    let mut words = vec![0; 4 * layout.zero_point_words(rows)];
    for at in 0..rows * bits {
        words[at / 8] |= ((code >> (at % bits) & 1) as u8) << (at % 8);
    }
    Region::from_vec(words)
}

/// The two sizes that a tensor of shapes holds; `None` if they cannot be addressed.
pub(crate) fn stored_shape(tensor: &StTensor) -> Option<[usize; 2]> {
    let values: Vec<i64> = match (tensor.dtype, tensor.bytes.len()) {
        (Dtype::I64, 16) => {
            tensor.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
        }
        (Dtype::I32, 8) => {
            tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect()
        }
        _ => return None,
    };
    let size = |value: i64| usize::try_from(value).ok().filter(|&size| size > 0 && size <= 1 << 28);
    Some([size(values[0])?, size(values[1])?])
}

/// The tensors that a packed matrix is stored as: codes, scales, shape and, if asymmetric, zero points.
///
/// `name` is the matrix's own, ending in `.weight`; a name that does not is taken as the module's.
///
/// ```
/// use std::num::NonZeroUsize;
/// use bitmill_checkpoint::grouped_specs;
/// use bitmill_tensor::{Bits, FloatType, Grouped, ZeroPoint};
///
/// let grouped = Grouped {
///     bits: Bits::new(4).unwrap(),
///     group_size: NonZeroUsize::new(128).unwrap(),
///     zero_point: ZeroPoint::Symmetric,
///     scale: FloatType::BF16,
/// };
/// let specs = grouped_specs("mlp.up_proj.weight", 896, 256, &grouped);
/// let shapes: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.shape.clone())).collect();
/// assert_eq!(shapes, [
///     ("mlp.up_proj.weight_packed", vec![896, 32]),
///     ("mlp.up_proj.weight_scale", vec![896, 2]),
///     ("mlp.up_proj.weight_shape", vec![2]),
/// ]);
/// ```
pub fn grouped_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    grouped: &Grouped,
) -> Vec<StTensorSpec> {
    row_specs(name, out_features, in_features, grouped, &|codes| grouped.words_per_row(codes))
}

/// [`grouped_specs`] as the library had them before 0.18: words hold whole codes. The same for widths that divide 32.
pub fn word_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    grouped: &Grouped,
) -> Vec<StTensorSpec> {
    let words_of = |codes: usize| codes.div_ceil(grouped.codes_per_word());
    row_specs(name, out_features, in_features, grouped, &words_of)
}

/// `words_of` says how many words so many codes take.
fn row_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    grouped: &Grouped,
    words_of: &dyn Fn(usize) -> usize,
) -> Vec<StTensorSpec> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let groups = grouped.groups_per_row(in_features);
    let spec = |part: &str, shape: Vec<usize>, dtype: Dtype| StTensorSpec {
        name: format!("{module}.{part}"),
        shape,
        dtype,
    };
    let mut specs = vec![
        spec(PACKED, vec![out_features, words_of(in_features)], Dtype::I32),
        spec(SCALE, vec![out_features, groups], grouped.scale.into()),
        spec(SHAPE, vec![2], Dtype::I64),
    ];
    if grouped.zero_point == ZeroPoint::Asymmetric {
        specs.push(spec(ZERO_POINT, vec![words_of(out_features), groups], Dtype::I32));
    }
    specs
}

/// One way to quantize, as config.json declares it for a set of modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackedScheme {
    /// Width of a code.
    pub bits: Bits,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Whether zero points are stored.
    pub zero_point: ZeroPoint,
}

impl From<Grouped> for PackedScheme {
    fn from(grouped: Grouped) -> Self {
        let granularity = Granularity::Group { size: grouped.group_size };
        Self { bits: grouped.bits, granularity, zero_point: grouped.zero_point }
    }
}

/// How a set of modules is stored, and what they multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModuleScheme {
    /// Codes in words; activations as they are.
    Packed(PackedScheme),
    /// Small numbers.
    Scaled(Scaled, Activations),
}

/// The `quantization_config` of config.json: one group for each scheme with the modules it is for.
///
/// A single group is for every `Linear` that `ignore` does not name, whatever modules are listed with it; several
/// groups name theirs, each exactly or as a pattern beginning with `re:`. `ignore` must name `lm_head` where that
/// is not packed, also when it shares the embedding's weights.
pub fn modules_config(groups: &[(ModuleScheme, Vec<String>)], ignore: &[String]) -> Value {
    let mut config_groups = Map::new();
    let mut formats: Vec<&str> = Vec::new();
    for (index, (scheme, modules)) in groups.iter().enumerate() {
        let targets = if groups.len() == 1 { json!(["Linear"]) } else { json!(modules) };
        let (format, weights, inputs) = match scheme {
            ModuleScheme::Packed(scheme) => ("pack-quantized", packed_weights(scheme), Value::Null),
            ModuleScheme::Scaled(layout, activations) => scaled::declaration(layout, *activations),
        };
        if !formats.contains(&format) {
            formats.push(format);
        }
        config_groups.insert(
            format!("group_{index}"),
            json!({
                "targets": targets,
                "weights": weights,
                "input_activations": inputs,
                "output_activations": null,
                "format": format,
            }),
        );
    }
    json!({
        "quant_method": "compressed-tensors",
        "version": if formats.contains(&"mxfp6-pack-quantized") { VERSION_OF_MXFP6 } else { VERSION },
        "format": match formats.as_slice() {
            [] => "pack-quantized",
            [only] => only,
            _ => "mixed-precision",
        },
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "sparsity_config": {},
        "transform_config": {},
    })
}

fn packed_weights(scheme: &PackedScheme) -> Value {
    let (strategy, group_size) = match scheme.granularity {
        Granularity::Channel => ("channel", None),
        Granularity::Group { size } => ("group", Some(size.get())),
    };
    json!({
        "num_bits": scheme.bits.get(),
        "type": "int",
        "symmetric": scheme.zero_point == ZeroPoint::Symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "minmax",
        "observer_kwargs": {},
    })
}

/// [`modules_config`] where all are packed.
pub fn packed_config(groups: &[(PackedScheme, Vec<String>)], ignore: &[String]) -> Value {
    let of =
        |(scheme, modules): &(PackedScheme, Vec<String>)| (ModuleScheme::Packed(*scheme), modules.clone());
    modules_config(&groups.iter().map(of).collect::<Vec<_>>(), ignore)
}

/// [`packed_config`] for layouts by group. One scale a row is a group as wide as the row here, which stores the same
/// bytes; where rows differ in width, [`Granularity::Channel`] says it in one group.
pub fn compressed_tensors_config(groups: &[(Grouped, Vec<String>)], ignore: &[String]) -> Value {
    let groups: Vec<(PackedScheme, Vec<String>)> =
        groups.iter().map(|(grouped, modules)| ((*grouped).into(), modules.clone())).collect();
    packed_config(&groups, ignore)
}
