//! `bitmill bench`.

use bitmill_bench::BenchSettings;
use bitmill_kernels::Isa;
use bitmill_model::Model;
use bitmill_pipeline::{own_weights, size_on_disk};
use bitmill_report::{BenchReport, BenchSchema, Machine, bench_text, timestamp, to_json};

use crate::args::{Bench, Global};
use crate::failure::Failure;
use crate::{Outcome, models, stdout};

pub fn bench(args: &Bench, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let model = Model::load(&checkpoint)?;
    let settings = BenchSettings {
        prefill_tokens: args.prefill as usize,
        decode_tokens: args.decode as usize,
        repeats: args.repeats as usize,
        ..BenchSettings::default()
    };
    let isa = Isa::best();
    let speed = bitmill_bench::measure(&model, isa, &settings, global.seed)?;
    let bytes = size_on_disk(&checkpoint);
    let report = BenchReport {
        schema: BenchSchema,
        version: env!("CARGO_PKG_VERSION").into(),
        created: timestamp(),
        model: checkpoint.name(),
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / own_weights(&checkpoint) as f64,
        speed,
        seed: global.seed,
        machine: Machine::read(isa.name(), rayon::current_num_threads()),
    };
    stdout::print(&if global.json { to_json(&report) } else { bench_text(&report) })?;
    Ok(Outcome::Done)
}
