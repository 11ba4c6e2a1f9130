//! GPTQ and AWQ: what a packed matrix is stored as there, read and written.
//!
//! ```text
//!               GPTQ                                        AWQ (GEMM, 4 bits)
//! NAME.qweight  I32 [in·bits/32, out], packed along `in`    I32 [in, out/8], eight rows a word
//! NAME.qzeros   I32 [groups, out·bits/32]                   I32 [groups, out/8]
//! NAME.scales   F16|BF16|F32 [groups, out]                  the same
//! NAME.g_idx    I32 [in]: the group of each column          —
//! ```
//!
//! Codes and zero points are unsigned, `weight = scale · (code − zero)`. GPTQ's streams run on from word to word, least
//! significant bit first; its first form stores zero points less one, `gptq_v2` as they are. Four bits `i` of an AWQ word are
//! row 0, 2, 4, 6, 1, 3, 5, 7 of its eight.
//!
//! Widths and group sizes follow from the shapes, so that overrides by pattern (`dynamic`) need not be matched. Read are 2, 3,
//! 4 and 8 bits, in any order of columns, also as AutoRound declares them; anything else is an error that names it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;

use bitmill_tensor::{Bits, ColumnPacking, Dtype, Encoding, Granularity, Grouped, WeightView, ZeroPoint};
use serde_json::{Map, Value, json};

use crate::checkpoint::Parts;
use crate::compressed_tensors::{PackedScheme, StoredMatrix};
use crate::config_json::Fields;
use crate::safetensors_in::StTensor;
use crate::{Error, Region, StTensorSpec};

const CODES: &str = "qweight";
const ZEROS: &str = "qzeros";
const SCALES: &str = "scales";
const GROUP_OF: &str = "g_idx";

/// What a config declares of all its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Declared {
    packing: ColumnPacking,
    zero_point: ZeroPoint,
    /// `None`: one scale a row, or nothing said.
    group_size: Option<usize>,
}

/// Reads a `quantization_config` whose method is not compressed-tensors'.
pub(crate) fn declared(fields: &Fields, method: &str) -> Result<Declared, Error> {
    let unsupported = |what: String| Error::UnsupportedQuantization { file: fields.file.to_owned(), what };
    let format = match fields.text("checkpoint_format")? {
        Some(format) => Some(format),
        None => fields.text(if method.starts_with("auto") { "packing_format" } else { "format" })?,
    };
    let packing = match (method, format) {
        ("gptq", None | Some("gptq")) => ColumnPacking::GptqV1,
        ("gptq", Some("gptq_v2")) => ColumnPacking::GptqV2,
        ("auto-round" | "auto_round", Some("auto_round:auto_gptq" | "auto_round:gptq")) => {
            ColumnPacking::GptqV1
        }
        ("auto-round" | "auto_round", Some("auto_round:gptq_v2")) => ColumnPacking::GptqV2,
        ("auto-round" | "auto_round", Some("auto_round:auto_awq" | "auto_round:awq")) => ColumnPacking::Awq,
        ("awq", _) => {
            let version = fields.text("version")?.or(fields.text("format")?).unwrap_or("gemm");
            if !version.eq_ignore_ascii_case("gemm") {
                return Err(unsupported(format!("AWQ's version `{version}`")));
            }
            ColumnPacking::Awq
        }
        (method, Some(format)) => return Err(unsupported(format!("the format `{format}` of `{method}`"))),
        (method, None) => return Err(unsupported(format!("the method `{method}`"))),
    };
    let bits = fields.optional_size("bits", 64)?.or(fields.optional_size("w_bit", 64)?).unwrap_or(4);
    let is_read = match packing {
        ColumnPacking::Awq => bits == 4,
        _ => matches!(bits, 2 | 3 | 4 | 8),
    };
    if !is_read {
        return Err(unsupported(format!("a width of {bits} bits")));
    }
    if let Some(words) = fields.text("pack_dtype")?
        && words != "int32"
    {
        return Err(unsupported(format!("words of the dtype `{words}`")));
    }
    if fields.flag("is_marlin_format")? == Some(true) {
        return Err(unsupported("the format `marlin`".to_owned()));
    }
    let is_symmetric = match packing {
        ColumnPacking::Awq => false,
        _ => fields.flag("sym")?.unwrap_or(true),
    };
    let group_size = match fields.get("group_size").or(fields.get("q_group_size")) {
        Some(value) if value.as_i64() == Some(-1) => None,
        Some(_) => {
            let key = if fields.get("group_size").is_some() { "group_size" } else { "q_group_size" };
            fields.optional_size(key, 1 << 30)?
        }
        None => None,
    };
    let zero_point = if is_symmetric { ZeroPoint::Symmetric } else { ZeroPoint::Asymmetric };
    Ok(Declared { packing, zero_point, group_size })
}

/// The matrix that a stored tensor is a part of (`….weight`), if its name says so.
pub(crate) fn matrix_of(name: &str) -> Option<(String, &'static str)> {
    let (module, part) = name.rsplit_once('.')?;
    let part = [CODES, ZEROS, SCALES, GROUP_OF].into_iter().find(|known| *known == part)?;
    Some((format!("{module}.weight"), part))
}

/// Puts the matrix `name` together from its stored `parts`, by the last part of their names.
pub(crate) fn assemble(
    name: &str,
    mut parts: HashMap<&'static str, StTensor>,
    declared: Declared,
) -> Result<StoredMatrix, Error> {
    let wrong = |problem: String| Error::PackedTensor { tensor: name.to_owned(), problem };
    let mut take = |part: &str| parts.remove(part);
    let (Some(codes), Some(zeros), Some(scales)) = (take(CODES), take(ZEROS), take(SCALES)) else {
        return Err(wrong(format!("`{CODES}`, `{ZEROS}` and `{SCALES}` must all be there")));
    };
    // Some writers leave an empty one where columns are in order.
    let group_of = take(GROUP_OF).filter(|part| !part.bytes.is_empty());
    for part in [Some(&codes), Some(&zeros), group_of.as_ref()].into_iter().flatten() {
        if part.dtype != Dtype::I32 {
            return Err(wrong(format!("`{}` is {} where I32 is expected", part.name, part.dtype)));
        }
    }
    let scale = scales.dtype.float().ok_or_else(|| wrong(format!("scales of dtype {}", scales.dtype)))?;
    let shapes =
        || format!("codes {:?}, zero points {:?} and scales {:?}", codes.shape, zeros.shape, scales.shape);
    let no_matrix = || wrong(format!("{} are no matrix", shapes()));
    let (&[lines, words], &[zero_lines, zero_words], &[groups, out_features]) =
        (codes.shape.as_slice(), zeros.shape.as_slice(), scales.shape.as_slice())
    else {
        return Err(no_matrix());
    };
    // Shapes of stored tensors can be multiplied with 32: a reader checked that 16 bytes an element can be addressed, and
    // these have 4.
    let (bits, in_features) = if declared.packing.is_gptq() {
        let bits = (32 * zero_words).checked_div(out_features).and_then(|bits| u8::try_from(bits).ok());
        let bits =
            bits.filter(|bits| matches!(bits, 2 | 3 | 4 | 8)).and_then(Bits::new).ok_or_else(no_matrix)?;
        let in_features = 32 * lines / usize::from(bits.get());
        let is_whole = in_features * usize::from(bits.get()) == 32 * lines
            && 32 * zero_words == out_features * usize::from(bits.get());
        if !is_whole || words != out_features {
            return Err(no_matrix());
        }
        (bits, in_features)
    } else {
        if 8 * words != out_features || zero_words != words {
            return Err(no_matrix());
        }
        (Bits::new(4).ok_or_else(no_matrix)?, lines)
    };
    if zero_lines != groups || groups == 0 || in_features == 0 || groups > in_features {
        return Err(no_matrix());
    }
    let group_of = match group_of {
        None => {
            // Without an order of columns the config says where groups end.
            let size = declared.group_size.unwrap_or(in_features);
            if groups.checked_mul(size) != Some(in_features) {
                return Err(wrong(format!("{groups} groups of {size} are not {in_features} columns")));
            }
            None
        }
        Some(part) => group_order(name, part, in_features, groups)?,
    };
    // Where columns have an order of their own this is what it comes to on average.
    let group_size = NonZeroUsize::new(in_features.div_ceil(groups)).ok_or_else(no_matrix)?;
    if !in_features.is_multiple_of(groups) {
        return Err(wrong(format!("{in_features} columns do not divide into {groups} groups")));
    }
    let layout = Grouped { bits, group_size, zero_point: declared.zero_point, scale };
    let parts = Parts::Columns {
        layout,
        packing: declared.packing,
        packed: codes.bytes,
        scales: scales.bytes,
        zero_points: zeros.bytes,
        group_of,
        places: None,
    };
    let encoding = Encoding::Grouped(layout);
    WeightView::new(out_features, in_features, parts.data(encoding))
        .map_err(|source| Error::View { tensor: name.to_owned(), source })?;
    Ok(StoredMatrix { shape: [out_features, in_features], encoding, parts })
}

/// The group of each column, as `part` of the matrix `name` has it; `None` if they are in order.
///
/// # Errors
/// [`Error::PackedTensor`] unless it names one of `groups` for each of `in_features` columns.
pub(crate) fn group_order(
    name: &str,
    part: StTensor,
    in_features: usize,
    groups: usize,
) -> Result<Option<Region>, Error> {
    let wrong = |problem: String| Error::PackedTensor { tensor: name.to_owned(), problem };
    let known = part.name.rsplit('.').next().unwrap_or_default();
    let own = part.bytes.as_chunks::<4>().0;
    if part.shape != [in_features] || part.dtype != Dtype::I32 {
        return Err(wrong(format!(
            "`{known}` {} {:?} is not one group for each of {in_features} columns",
            part.dtype, part.shape
        )));
    }
    let outside = own
        .iter()
        .map(|group| i32::from_le_bytes(*group))
        .find(|group| usize::try_from(*group).is_ok_and(|group| group < groups).eq(&false));
    if let Some(group) = outside {
        return Err(wrong(format!("`{known}` names group {group} of {groups}")));
    }
    let in_order = in_features.is_multiple_of(groups)
        && own
            .iter()
            .enumerate()
            .all(|(column, group)| u32::from_le_bytes(*group) as usize == column / (in_features / groups));
    Ok((!in_order).then_some(part.bytes))
}

/// The tensors that a matrix is stored as in `packing`: codes, scales, zero points, and for GPTQ the group of each column.
///
/// `name` is the matrix's own, ending in `.weight`; a name that does not is taken as the module's.
///
/// ```
/// use std::num::NonZeroUsize;
/// use bitmill_checkpoint::column_specs;
/// use bitmill_tensor::{Bits, ColumnPacking, FloatType, Grouped, ZeroPoint};
///
/// let grouped = Grouped {
///     bits: Bits::new(4).unwrap(),
///     group_size: NonZeroUsize::new(128).unwrap(),
///     zero_point: ZeroPoint::Symmetric,
///     scale: FloatType::F16,
/// };
/// let specs = column_specs("mlp.up_proj.weight", 896, 256, &grouped, ColumnPacking::GptqV1);
/// let shapes: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.shape.clone())).collect();
/// assert_eq!(shapes, [
///     ("mlp.up_proj.qweight", vec![32, 896]),
///     ("mlp.up_proj.scales", vec![2, 896]),
///     ("mlp.up_proj.qzeros", vec![2, 112]),
///     ("mlp.up_proj.g_idx", vec![256]),
/// ]);
/// ```
pub fn column_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    grouped: &Grouped,
    packing: ColumnPacking,
) -> Vec<StTensorSpec> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let groups = grouped.groups_per_row(in_features);
    let spec = |part: &str, shape: Vec<usize>, dtype: Dtype| StTensorSpec {
        name: format!("{module}.{part}"),
        shape,
        dtype,
    };
    let codes = match packing.is_gptq() {
        true => vec![grouped.words_per_row(in_features), out_features],
        false => vec![in_features, out_features / 8],
    };
    let mut specs = vec![
        spec(CODES, codes, Dtype::I32),
        spec(SCALES, vec![groups, out_features], grouped.scale.into()),
        spec(ZEROS, vec![groups, grouped.zero_point_words(out_features)], Dtype::I32),
    ];
    if packing.is_gptq() {
        specs.push(spec(GROUP_OF, vec![in_features], Dtype::I32));
    }
    specs
}

/// The `quantization_config` of GPTQ's config.json and its quantize_config.json: `scheme` for every module but `others`, each
/// with its own scheme or none.
///
/// `desc_act` says that columns are grouped in the order of their activations.
pub fn gptq_config(
    scheme: &PackedScheme,
    packing: ColumnPacking,
    desc_act: bool,
    others: &[(String, Option<PackedScheme>)],
) -> Value {
    let mut dynamic = Map::new();
    let mut lm_head = true;
    for (module, own) in others {
        match own {
            // Its own key says so.
            None if module == "lm_head" => lm_head = false,
            None => {
                dynamic.insert(format!("-:{}", pattern(module)), json!({}));
            }
            Some(own) => {
                let fields = json!({"bits": own.bits.get(), "group_size": group_size(own)});
                dynamic.insert(format!("+:{}", pattern(module)), fields);
            }
        }
    }
    let mut config = json!({
        "quant_method": "gptq",
        "checkpoint_format": if packing == ColumnPacking::GptqV2 { "gptq_v2" } else { "gptq" },
        "bits": scheme.bits.get(),
        "group_size": group_size(scheme),
        "sym": scheme.zero_point == ZeroPoint::Symmetric,
        "desc_act": desc_act,
        "static_groups": false,
        "true_sequential": true,
        "lm_head": lm_head,
        "pack_dtype": "int32",
        "meta": {"quantizer": [format!("bitmill:{}", env!("CARGO_PKG_VERSION"))]},
    });
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    config
}

/// The `quantization_config` of AWQ's config.json: `scheme` for every `Linear` but those of `skipped`.
pub fn awq_config(scheme: &PackedScheme, skipped: &[String]) -> Value {
    json!({
        "quant_method": "awq",
        "bits": scheme.bits.get(),
        "group_size": group_size(scheme),
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": skipped,
    })
}

fn group_size(scheme: &PackedScheme) -> i64 {
    match scheme.granularity {
        Granularity::Channel => -1,
        Granularity::Group { size } => size.get() as i64,
    }
}

/// A regular expression for one module, by the name too that vLLM has it under when it is fused.
fn pattern(module: &str) -> String {
    let escaped = module.replace('.', "\\.");
    for (own, fused) in [("q_proj", "qkv_proj"), ("gate_proj", "gate_up_proj")] {
        if let Some(start) = escaped.strip_suffix(own) {
            return format!("^{start}({own}|{fused})$");
        }
    }
    format!("^{escaped}$")
}

/// The declaration of a folder without a `quantization_config`: what AutoGPTQ's first versions wrote beside config.json.
pub(crate) fn beside(file: &Path, config: &Value) -> Result<Declared, Error> {
    let fields = Fields::new(file, config)?;
    let method = fields.text("quant_method")?.unwrap_or("gptq");
    declared(&fields, method)
}
