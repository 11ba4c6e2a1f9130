//! Recipe, plan, run: the only crate that orders steps.
//!
//! ```text
//! text ──▶ Recipe ──▶ Plan ──▶ compress ──▶ a checkpoint, its record and card
//!        (what was    (what happens to each    (streamed, read back,
//!          asked)      tensor, with sizes)      renamed into place)
//! ```
//!
//! [`search`](search()) writes the recipe itself: it measures how sensitive each tensor is. [`compare`] runs several recipes on one model and measures each result from disk, and models that were made before; [`embedded`] is the model that
//! every command falls back to.

mod balancing;
mod baseline;
mod calibrated;
pub mod calibration;
mod card;
mod chat;
mod compare;
mod compress;
mod conversion;
mod depth;
mod deserving;
pub mod embedded;
mod encode;
mod error;
mod files;
mod generate;
mod identity;
mod imatrix;
mod importance;
mod journal;
mod layout;
mod learned;
mod made;
mod measure;
mod merged;
mod method;
mod notes;
mod packings;
mod padding;
mod pattern;
mod plan;
mod presets;
mod progress;
mod pruned;
mod pruning;
mod ranks;
mod read_back;
mod recipe;
mod search;
mod source;
mod stream;
mod tensor_run;
mod tensor_type;
mod tensor_write;
mod turning;
mod watch;

pub use balancing::{AwqStep, SmoothStep};
pub use baseline::{read_baseline, record_baseline};
pub use calibrated::{Continuation, HeldOut, LayerSeconds, MethodRecord, OutlierRecord, ScaleRecord};
pub use calibration::{Calibration, CalibrationOptions, Fit, Outliers};
pub use chat::Chat;
pub use compare::{CompareOptions, Stopwatch, compare, default_recipes};
pub use compress::{
    CompressRecord, TensorRecord, active_weights, compress, compress_all, n_weights, own_weights,
    size_on_disk,
};
pub use conversion::conversion;
pub use depth::{Depth, Influence};
pub use deserving::deserving;
pub use error::Error;
pub use files::write_file;
pub use generate::{Writer, model_sampling, sampled};
pub use imatrix::{ImatrixOptions, imatrix};
pub use learned::LearnedStep;
pub use made::{Made, tell_apart};
pub use measure::{Dense, Material, Request, Subject, TaskChoice, measure_quality};
pub use method::{Compensated, Gptq, Learning, Method, Order};
pub use padding::{Pad, PadWidth};
pub use plan::{Plan, PlanOptions, PlannedTensor, Treatment};
pub use presets::{PRESETS, Preset, preset};
pub use progress::{Progress, Silent};
pub use pruning::{DepthStep, MagnitudeStep, Removal, Storage};
pub use recipe::{
    ActivationsName, BitsNumber, BlockName, CacheNumber, FloatName, Format, GranularityName, ImportanceName,
    KvCacheOptions, MixName, NumberName, PackingName, Recipe, ScaleName, SearchName, Step, ZeroPointName,
};
pub use search::{
    Assigned, Budget, Measure, OptionSensitivity, Resolved, Round, SearchOptions, SearchReport, SearchResult,
    Sensitivity, UnitSensitivity, adjust, most_sensitive, parse_size, resolve, search,
};
pub use tensor_type::TensorType;
pub use turning::RotateStep;
pub use watch::{WatchOptions, append_history, read_history, watch};
