//! `bitmill convert`.

use bitmill_pipeline::{Format, Plan, PlanOptions, Treatment, conversion};
use bitmill_tensor::FloatType;

use crate::args::{Convert, ConvertDtype, ConvertTo, Global};
use crate::failure::Failure;
use crate::{Outcome, models};

pub fn convert(args: &Convert, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let format = match args.to {
        ConvertTo::Gguf => Format::Gguf,
        ConvertTo::HuggingFace => Format::HuggingFace,
        ConvertTo::CompressedTensors => Format::CompressedTensors,
        ConvertTo::Gptq => Format::Gptq,
        ConvertTo::Awq => Format::Awq,
    };
    let float = match args.dtype {
        ConvertDtype::Keep => None,
        ConvertDtype::F32 => Some(FloatType::F32),
        ConvertDtype::F16 => Some(FloatType::F16),
        ConvertDtype::Bf16 => Some(FloatType::BF16),
    };
    let options = PlanOptions {
        shard_bytes: args.shard_size,
        split_bytes: super::plan::split(args.split_max_size, format)?,
        ..PlanOptions::default()
    };
    let plan = Plan::new(&checkpoint, &conversion(format, float), &options)?;
    super::compress::write(&checkpoint, &plan, &args.output, &args.over, &notes(&plan), global)
}

/// What became of codes, a line for each encoding.
fn notes(plan: &Plan) -> String {
    let mut seen: Vec<(String, usize)> = Vec::new();
    for tensor in plan.tensors.iter().filter(|tensor| tensor.from.is_quantized()) {
        let what = match tensor.treatment {
            Treatment::Copied => format!("{} copied as they are", tensor.from),
            Treatment::Rounded => format!("{} unpacked to {}", tensor.from, tensor.to),
        };
        match seen.iter_mut().find(|(other, _)| *other == what) {
            Some((_, count)) => *count += 1,
            None => seen.push((what, 1)),
        }
    }
    seen.iter().map(|(what, count)| format!("{count} tensors of {what}\n")).collect()
}
