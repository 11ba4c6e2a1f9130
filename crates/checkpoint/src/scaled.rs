//! compressed-tensors' `int-`, `float-`, `naive-`, `mxfp8-`, `mxfp6-pack-`, `mxfp4-pack-` and `nvfp4-pack-quantized`: numbers of few
//! bits with scales, read and written.
//!
//! ```text
//! NAME.weight               I8 or F8_E4M3 [out, in]       a number each, or
//! NAME.weight_packed        U8 [out, in/2]                two E2M1 numbers a byte, the even column low, or
//!                           U8 [out, 3·in/4]              MXFP6: four E2M3 numbers in three bytes, the first lowest
//! NAME.weight_scale         F32|F16|BF16 [1], [out, 1], [out, in/g] or [⌈out/r⌉, ⌈in/c⌉]
//!                           F8_E4M3 [out, in/16]          NVFP4: to be divided by weight_global_scale
//!                           U8 [out, in/32]               MXFP4, MXFP6, MXFP8: exponents, plus 127
//! NAME.weight_global_scale  F32 [1]                       NVFP4
//! NAME.weight_zero_point    I8, as the scales             integers that are asymmetric
//! NAME.weight_g_idx         I32 [in]                      integers: the group of each column, where that is not in order
//! ```
//!
//! Which scale is for which numbers follows from the shapes; only the sides of blocks are the config's. What activations are
//! rounded to when a runtime multiplies with them is not the weights' affair: `input_global_scale` and its kin are left aside. Of the
//! method `fp8`, `weight_scale_inv` is the same as `weight_scale`.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use bitmill_tensor::{
    Bits, ColumnPacking, Dtype, Element, Encoding, Extent, FloatType, Grouped, ScaleType, Scaled, WeightView,
    ZeroPoint,
};
use serde_json::{Value, json};

use crate::checkpoint::Parts;
use crate::compressed_tensors::{
    GROUP_OF, PACKED, SCALE, Scheme, StoredMatrix, ZERO_POINT, group_order, order_is_missing, repeated,
};
use crate::safetensors_in::StTensor;
use crate::{Error, Region, StTensorSpec};

pub(crate) const WEIGHT: &str = "weight";
const SCALE_INV: &str = "weight_scale_inv";
const GLOBAL: &str = "weight_global_scale";
/// What belongs to activations.
const INPUTS: [&str; 3] = ["input_scale", "input_global_scale", "input_zero_point"];

/// The matrix that a stored tensor is a part of (`….weight`), if its name and dtype say so.
pub(crate) fn matrix_of(name: &str, dtype: Dtype) -> Option<(String, &'static str)> {
    let (module, part) = name.rsplit_once('.')?;
    let part = [WEIGHT, SCALE_INV, GLOBAL].into_iter().chain(INPUTS).find(|known| *known == part)?;
    let is_number = matches!(dtype, Dtype::I8 | Dtype::F8E4M3);
    (part != WEIGHT || is_number).then(|| (format!("{module}.weight"), part))
}

/// Whether a matrix's parts are of this form.
pub(crate) fn is_scaled(parts: &HashMap<&'static str, StTensor>) -> bool {
    parts.contains_key(WEIGHT) || parts.get(PACKED).is_some_and(|packed| packed.dtype == Dtype::U8)
}

/// Puts the matrix `name` together from its stored `parts`; `schemes` are what the config declares, `kept` the bits that say
/// which two of each four numbers are stored, where others are not, and how many columns there are.
pub(crate) fn assemble(
    name: &str,
    mut parts: HashMap<&'static str, StTensor>,
    schemes: &[Scheme],
    kept: Option<(Region, usize)>,
) -> Result<StoredMatrix, Error> {
    let wrong = |problem: String| Error::PackedTensor { tensor: name.to_owned(), problem };
    INPUTS.iter().for_each(|input| drop(parts.remove(input)));
    let mut take = |part: &str| parts.remove(part);
    let (codes, packed) = (take(WEIGHT), take(PACKED));
    if codes.is_some() && packed.is_some() {
        return Err(wrong(format!("it has both `{WEIGHT}` and `{PACKED}`")));
    }
    let (Some(codes), Some(scale)) = (codes.or(packed), take(SCALE).or(take(SCALE_INV))) else {
        return Err(wrong(format!("there are numbers without a `{SCALE}`")));
    };
    let zeros = take(ZERO_POINT).filter(|zeros| zeros.bytes.iter().any(|&byte| byte != 0));
    let group_of = take(GROUP_OF);
    let mut numbers = schemes.iter().filter(|scheme| scheme.is_scaled()).peekable();
    if group_of.is_none() && numbers.peek().is_some() && numbers.all(Scheme::is_ordered) {
        return Err(wrong(order_is_missing()));
    }
    let &[out_features, row] = codes.shape.as_slice() else {
        return Err(wrong(format!("numbers of the shape {:?} are no matrix", codes.shape)));
    };
    let element = match codes.dtype {
        Dtype::I8 => Element::Int8,
        Dtype::F8E4M3 => Element::Fp8,
        // 32 numbers have a scale; of 6 bits they are 24 bytes, of 4 bits 16.
        _ if matches!(*scale.shape, [_, lines] if row == lines * 24)
            && matches!(scale.dtype, Dtype::U8 | Dtype::F8E8M0) =>
        {
            Element::Fp6
        }
        _ => Element::Fp4,
    };
    let in_features = match (element, &kept) {
        (Element::Fp4, _) => 2 * row,
        (Element::Fp6, _) => row / 3 * 4,
        (_, Some((_, in_features))) => *in_features,
        _ => row,
    };
    let scale_type = match scale.dtype {
        Dtype::F32 => ScaleType::Float(FloatType::F32),
        Dtype::F16 => ScaleType::Float(FloatType::F16),
        Dtype::BF16 => ScaleType::Float(FloatType::BF16),
        Dtype::F8E4M3 => ScaleType::Fp8,
        Dtype::U8 | Dtype::F8E8M0 => ScaleType::PowerOfTwo,
        other => return Err(wrong(format!("scales of dtype {other}"))),
    };
    let blocks = schemes.iter().filter_map(Scheme::block);
    let extent = extent(&scale.shape, out_features, in_features, blocks).ok_or_else(|| {
        wrong(format!("scales {:?} fit no [{out_features}, {in_features}] matrix", scale.shape))
    })?;
    let global = match (scale_type, take(GLOBAL)) {
        (ScaleType::Fp8, Some(global)) => match (global.dtype, <[u8; 4]>::try_from(&*global.bytes)) {
            (Dtype::F32, Ok(bytes)) => Some(f32::from_le_bytes(bytes)),
            _ => return Err(wrong(format!("`{GLOBAL}` is no single F32"))),
        },
        (_, Some(_)) => return Err(wrong(format!("scales of dtype {} beside a `{GLOBAL}`", scale.dtype))),
        (ScaleType::Fp8, None) => return Err(wrong(format!("scales of dtype F8_E4M3 without a `{GLOBAL}`"))),
        (_, None) => None,
    };
    if let Some(global) = global
        && !(global.is_normal() && global > 0.0)
    {
        return Err(wrong(format!("`{GLOBAL}` is {global}, by which nothing can be divided")));
    }
    let layout = Scaled { element, extent, scale: scale_type };
    let group_of = match (group_of, extent) {
        (Some(part), Extent::Columns(size)) => {
            group_order(name, part, in_features, in_features / size.get())?
        }
        _ => None,
    };
    let (encoding, parts) = if zeros.is_some() || group_of.is_some() {
        let parts = Uneven { layout, zeros, group_of, codes: codes.bytes, scales: scale.bytes };
        if kept.is_some() {
            return Err(wrong("two of four numbers with zero points or in an order of their own".to_owned()));
        }
        parts.in_groups(out_features, in_features).map_err(wrong)?
    } else {
        let parts = Parts::Scaled {
            layout,
            codes: codes.bytes,
            scales: scale.bytes,
            global: global.unwrap_or(1.0),
            nested: None,
            kept: kept.map(|(kept, _)| kept),
        };
        (Encoding::Scaled(layout), parts)
    };
    WeightView::new(out_features, in_features, parts.data(encoding))
        .map_err(|source| Error::View { tensor: name.to_owned(), source })?;
    Ok(StoredMatrix { shape: [out_features, in_features], encoding, parts })
}

/// Integers that have zero points, or whose columns are in groups by an order of their own.
struct Uneven {
    layout: Scaled,
    zeros: Option<StTensor>,
    group_of: Option<Region>,
    codes: Region,
    scales: Region,
}

impl Uneven {
    /// As groups of codes; or why they are none.
    fn in_groups(self, out_features: usize, in_features: usize) -> Result<(Encoding, Parts), String> {
        let Self { layout, zeros, group_of, codes, mut scales } = self;
        let (Element::Int8, ScaleType::Float(scale)) = (layout.element, layout.scale) else {
            return Err(format!("{layout} with zero points or in an order of its own"));
        };
        let group_size = match layout.extent {
            Extent::Columns(size) => Some(size),
            Extent::Row | Extent::Matrix => NonZeroUsize::new(in_features),
            Extent::Block { .. } => return Err("blocks of integers with zero points".to_owned()),
        };
        let group_size = group_size.ok_or("it has no columns")?;
        let per_row = in_features / group_size.get();
        let mut zero_points = match zeros {
            None => Region::from_vec(vec![0; out_features * per_row]),
            Some(zeros) if zeros.dtype == Dtype::I8 => zeros.bytes,
            Some(zeros) => return Err(format!("`{ZERO_POINT}` is {} where I8 is expected", zeros.dtype)),
        };
        if layout.extent == Extent::Matrix {
            scales = repeated(&scales, out_features);
            if zero_points.len() == 1 {
                zero_points = repeated(&zero_points, out_features);
            }
        }
        let bits = const { Bits::new(8).expect("at most 8") };
        let layout = Grouped { bits, group_size, zero_point: ZeroPoint::Asymmetric, scale };
        let parts = Parts::Columns {
            layout,
            packing: ColumnPacking::Bytes,
            packed: codes,
            scales,
            zero_points,
            group_of,
            places: None,
        };
        Ok((Encoding::Grouped(layout), parts))
    }
}

/// Which numbers share one of the scales of this shape.
fn extent(
    shape: &[usize],
    out_features: usize,
    in_features: usize,
    mut blocks: impl Iterator<Item = (NonZeroUsize, NonZeroUsize)>,
) -> Option<Extent> {
    let (lines, per_line) = match *shape {
        [lines, per_line] => (lines, per_line),
        [lines] => (lines, 1),
        [] => (1, 1),
        _ => return None,
    };
    if (lines, per_line) == (out_features, 1) {
        return Some(Extent::Row);
    }
    // A matrix smaller than a block has one of them.
    let declared = blocks.find(|(rows, cols)| {
        shape.len() == 2
            && lines == out_features.div_ceil(rows.get())
            && per_line == in_features.div_ceil(cols.get())
    });
    if let Some((rows, cols)) = declared {
        return Some(Extent::Block { rows, cols });
    }
    if (lines, per_line) == (1, 1) {
        return Some(Extent::Matrix);
    }
    let tiles = lines == out_features && per_line > 0 && in_features.is_multiple_of(per_line);
    tiles.then(|| NonZeroUsize::new(in_features / per_line)).flatten().map(Extent::Columns)
}

/// The tensors that a matrix is stored as: numbers, scales, and of NVFP4 the global scale.
///
/// `name` is the matrix's own, ending in `.weight`; a name that does not is taken as the module's.
///
/// ```
/// use bitmill_checkpoint::scaled_specs;
/// use bitmill_tensor::{Element, Extent, ScaleType, Scaled};
///
/// let extent = Extent::Columns(16.try_into().unwrap());
/// let nvfp4 = Scaled { element: Element::Fp4, extent, scale: ScaleType::Fp8 };
/// let specs = scaled_specs("mlp.up_proj.weight", 896, 256, &nvfp4);
/// let shapes: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.shape.clone())).collect();
/// assert_eq!(shapes, [
///     ("mlp.up_proj.weight_packed", vec![896, 128]),
///     ("mlp.up_proj.weight_scale", vec![896, 16]),
///     ("mlp.up_proj.weight_global_scale", vec![1]),
/// ]);
/// ```
pub fn scaled_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    layout: &Scaled,
) -> Vec<StTensorSpec> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let spec = |part: &str, shape: Vec<usize>, dtype: Dtype| StTensorSpec {
        name: format!("{module}.{part}"),
        shape,
        dtype,
    };
    let (lines, per_line) = layout.extent.scales(out_features, in_features);
    let scales = if layout.extent == Extent::Matrix { vec![1] } else { vec![lines, per_line] };
    let codes = if matches!(layout.element, Element::Fp4 | Element::Fp6) { PACKED } else { WEIGHT };
    let mut specs = vec![
        spec(codes, vec![out_features, layout.element.row_bytes(in_features)], layout.element.dtype()),
        spec(SCALE, scales, layout.scale.dtype()),
    ];
    if layout.scale == ScaleType::Fp8 {
        specs.push(spec(GLOBAL, vec![1], Dtype::F32));
    }
    specs
}

/// What the activations are that a runtime multiplies with these weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// As the model has them.
    #[default]
    Full,
    /// Rounded to the weights' kind of number as the model runs: by token, or by the width of the weights' blocks.
    Dynamic,
    /// Rounded to 8-bit floats by one scale for each matrix, which is stored: `input_scale`.
    Static,
}

/// The name of the form, and `weights` and `input_activations` of a group of modules in it.
pub(crate) fn declaration(layout: &Scaled, activations: Activations) -> (&'static str, Value, Value) {
    let number = if layout.element == Element::Int8 { "int" } else { "float" };
    let bits = match layout.element {
        Element::Int8 | Element::Fp8 => 8,
        Element::Fp6 => 6,
        Element::Fp4 | Element::Listed(_) => 4,
    };
    let (strategy, group_size, block) = match layout.extent {
        Extent::Matrix => ("tensor", None, None),
        Extent::Row => ("channel", None, None),
        Extent::Columns(cols) if layout.scale == ScaleType::Fp8 => ("tensor_group", Some(cols), None),
        Extent::Columns(cols) => ("group", Some(cols), None),
        Extent::Block { rows, cols } => ("block", None, Some([rows, cols])),
    };
    let args = |strategy: &str, group_size: Option<NonZeroUsize>, block: Option<[NonZeroUsize; 2]>| {
        json!({
            "num_bits": bits,
            "type": number,
            "symmetric": true,
            "strategy": strategy,
            "group_size": group_size,
            "block_structure": block,
            "dynamic": false,
            "actorder": null,
            "observer": "minmax",
            "observer_kwargs": {},
        })
    };
    let mut weights = args(strategy, group_size, block);
    let own = match layout.scale {
        ScaleType::Float(_) | ScaleType::Nested => None,
        ScaleType::Fp8 => Some("torch.float8_e4m3fn"),
        ScaleType::PowerOfTwo => Some("torch.uint8"),
    };
    if let Some(dtype) = own {
        weights["scale_dtype"] = dtype.into();
        weights["zp_dtype"] = dtype.into();
    }
    let inputs = match (activations, layout.extent) {
        (Activations::Full, _) => Value::Null,
        (Activations::Static, _) => args("tensor", None, None),
        (Activations::Dynamic, extent) => {
            let mut inputs = match extent {
                Extent::Block { cols, .. } => args("group", Some(cols), None),
                _ => args("token", None, None),
            };
            inputs["dynamic"] = true.into();
            inputs["observer"] = Value::Null;
            inputs
        }
    };
    let format = match (layout.element, layout.scale, activations) {
        (Element::Fp8, ScaleType::PowerOfTwo, _) => "mxfp8-quantized",
        (Element::Fp6, ..) => "mxfp6-pack-quantized",
        (Element::Fp4, ScaleType::PowerOfTwo, _) => "mxfp4-pack-quantized",
        (Element::Fp4, ..) => "nvfp4-pack-quantized",
        (Element::Listed(_), ..) => unreachable!("bitsandbytes declares its own"),
        (Element::Int8, _, Activations::Dynamic | Activations::Static) => "int-quantized",
        (Element::Fp8, _, Activations::Dynamic | Activations::Static) => "float-quantized",
        (_, _, Activations::Full) => "naive-quantized",
    };
    (format, weights, inputs)
}
