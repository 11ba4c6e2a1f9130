//! What can go wrong between a recipe and its result.

use std::path::PathBuf;

use bitmill_tensor::FloatType;

use crate::Fit;

/// What recipes that look at weights alone have no use for.
pub(crate) const CALIBRATION_TOKENS: &str = "calibration tokens";

/// Errors of this crate; those of the crates below pass through unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a preset nor a file.
    #[error("`{name}` is neither a preset nor a recipe file")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
    },
    /// States between layers could not be written.
    #[error("{}: {source}", path.display())]
    WriteStates {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An interrupted run's states are not there.
    #[error("{}: what entered layer {layer} is gone or damaged", folder.display())]
    StatesGone {
        /// Where they lay.
        folder: PathBuf,
        /// The layer that would come next.
        layer: usize,
    },
    /// A method could not be used, and falling back was not allowed.
    #[error("`{tensor}`: {why}")]
    Fallback {
        /// The tensor.
        tensor: String,
        /// Why.
        why: String,
    },
    /// Matrices have outliers that one scale a row does not hold, and falling back was not allowed.
    #[error("`{tensor}` and {others} more: {reason}")]
    Outliers {
        /// The first.
        tensor: String,
        /// How many more.
        others: usize,
        /// What it would be stored as.
        to: String,
        /// What is lost.
        reason: String,
    },
    /// Recipes that are to share a pass want other calibration tokens.
    #[error("`{recipe}` and `{other}` are calibrated on other tokens: `{key}` in [calibration] differs")]
    UnlikeCalibration {
        /// The first.
        recipe: String,
        /// Another.
        other: String,
        /// What differs.
        key: &'static str,
    },
    /// A run would take more memory than it may.
    #[error("about {needed} bytes of memory, and {allowed} are allowed")]
    TooMuchMemory {
        /// What is predicted.
        needed: u64,
        /// What is allowed.
        allowed: u64,
        /// Whether it is what calibration takes.
        calibrates: bool,
    },
    /// Features that no Hadamard matrix mixes.
    #[error("{model}: {width} features cannot be rotated: no Hadamard matrix of more than 2 divides them")]
    NoRotation {
        /// The model.
        model: String,
        /// How many features there are.
        width: usize,
    },
    /// Matrices that share their inputs are asked to be compressed by different statistics.
    #[error("`{tensor}` and `{other}` share their inputs but not how they are quantized")]
    UnlikeMethods {
        /// One.
        tensor: String,
        /// The other.
        other: String,
    },
    /// A layer some of whose matrices are learned, and others calibrated otherwise.
    #[error("`{other}` is learned with its layer, and `{tensor}` is to be calibrated in another way")]
    HalfLearned {
        /// The other way.
        tensor: String,
        /// What is learned.
        other: String,
    },
    /// A task's items are not those that a baseline holds answers to.
    #[error("task `{task}` is not what the baseline's answers are to")]
    OtherTask {
        /// The task.
        task: String,
    },
    /// A line of a JSON-lines file is not what it should be.
    #[error("{}, line {line}: {problem}", path.display())]
    MalformedLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// No recipe can give this model's tensors more bits.
    #[error("{model}: {problem}")]
    NotAdjustable {
        /// The model.
        model: String,
        /// Why.
        problem: String,
    },
    /// The recipe file could not be read.
    #[error("{}: {source}", path.display())]
    ReadRecipe {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The recipe file is no recipe.
    #[error("{}: {message}", path.display())]
    MalformedRecipe {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where there is one.
        message: String,
    },
    /// Something for a recipe whose steps have no use for it.
    #[error("recipe `{recipe}` has no use for {what}")]
    NoUse {
        /// The recipe's name.
        recipe: String,
        /// What it has no use for.
        what: &'static str,
    },
    /// Keys or values that no cache of 8 bits holds.
    #[error(
        "layer {layer}: keys or values of calibration tokens are infinite or NaN, and scales of a cache follow from the largest"
    )]
    CacheRange {
        /// The decoder layer.
        layer: usize,
    },
    /// Inputs that give no scale.
    #[error(
        "`{tensor}`: no calibration token meets it, or what it multiplies is infinite or NaN, and the scale of its inputs follows from the largest"
    )]
    InputRange {
        /// The tensor.
        tensor: String,
    },
    /// Steps that another format has no form for.
    #[error("recipe `{recipe}` makes what {format} has no form for")]
    OtherFormat {
        /// The recipe's name.
        recipe: String,
        /// The format's name.
        format: &'static str,
    },
    /// What another format has no place for, beside steps.
    #[error("recipe `{recipe}` cannot be written as {format}: {problem}")]
    NoPlace {
        /// The recipe's name.
        recipe: String,
        /// The format's name.
        format: &'static str,
        /// What stands against it.
        problem: String,
    },
    /// A grid that the format has no form for, by itself or beside others.
    #[error("`{tensor}` cannot be written as {format}: {problem}")]
    NotHeld {
        /// The tensor.
        tensor: String,
        /// The format's name.
        format: &'static str,
        /// What it does not hold.
        problem: String,
    },
    /// A matrix that tensor parallelism cannot share out.
    #[error("`{tensor}` does not divide among {ranks} ranks: {problem}")]
    UnevenRanks {
        /// The tensor.
        tensor: String,
        /// Ranks that the recipe's `tensor_parallel` says.
        ranks: usize,
        /// What is left over.
        problem: String,
    },
    /// A pattern of the recipe matches no tensor of the model.
    #[error("recipe `{recipe}`: `{pattern}` matches no tensor of {model}")]
    PatternMatchesNothing {
        /// The recipe's name.
        recipe: String,
        /// The pattern.
        pattern: String,
        /// The model.
        model: String,
    },
    /// A pattern names only tensors that are not quantized: norms, biases, or (as compressed-tensors) the embedding.
    #[error(
        "recipe `{recipe}`: `{pattern}` matches only tensors that {format} keeps as they are, such as `{tensor}`"
    )]
    PatternMatchesNoMatrix {
        /// The recipe's name.
        recipe: String,
        /// The pattern.
        pattern: String,
        /// One that it matches.
        tensor: String,
        /// The format's name.
        format: &'static str,
    },
    /// Members that runtimes fuse into one matrix got different schemes.
    #[error(
        "layer {layer}: {members} are quantized differently ({found}), but runtimes fuse them into one matrix"
    )]
    SplitFusion {
        /// The decoder layer.
        layer: usize,
        /// `"q/k/v"` or `"gate/up"`, of an expert with its number.
        members: String,
        /// Their encodings.
        found: String,
    },
    /// A prompt, or the last message of a chat with its template, is longer than the context.
    #[error("{tokens} tokens to read, and the context has {positions}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the context.
        positions: usize,
    },
    /// Experts that a GGUF file holds in one tensor were given different types.
    #[error(
        "`{tensor}`: expert {expert} is {found} where others are {expected}, and GGUF has one type for all"
    )]
    ExpertsDiffer {
        /// The tensor of the file.
        tensor: String,
        /// The encoding of the first.
        expected: String,
        /// The first that differs.
        expert: usize,
        /// Its encoding.
        found: String,
    },
    /// The source's weights are codes already.
    #[error("{model} is already quantized: `{tensor}` is {encoding}")]
    AlreadyQuantized {
        /// The model.
        model: String,
        /// The first such tensor.
        tensor: String,
        /// Its encoding.
        encoding: String,
    },
    /// A method failed on one tensor.
    #[error("`{tensor}`: {source}")]
    Quantize {
        /// The tensor.
        tensor: String,
        /// Why.
        source: bitmill_quant::Error,
    },
    /// A pruning pattern does not fit one tensor.
    #[error("`{tensor}`: {source}")]
    Prune {
        /// The tensor.
        tensor: String,
        /// Why.
        source: bitmill_prune::Error,
    },
    /// Sparse storage of a matrix that a later step makes codes of, or beside such matrices.
    #[error("recipe `{recipe}`: `{sparse}` would be stored sparse and `{quantized}` as {encoding}")]
    SparseBesideCodes {
        /// The recipe's name.
        recipe: String,
        /// A sparse matrix.
        sparse: String,
        /// A quantized one, perhaps the same.
        quantized: String,
        /// Its encoding.
        encoding: String,
    },
    /// So small or large a part of the layers that none, or all, would go.
    #[error("recipe `{recipe}` would remove {removed} of {n_layers} layers")]
    DepthRemoves {
        /// The recipe's name.
        recipe: String,
        /// Layers that would go.
        removed: usize,
        /// Layers of the model.
        n_layers: usize,
    },
    /// The recipe names a layer that the model has not.
    #[error("recipe `{recipe}` removes layer {layer} of a model with layers 0 to {}", n_layers - 1)]
    NoSuchLayer {
        /// The recipe's name.
        recipe: String,
        /// The layer.
        layer: usize,
        /// Layers of the model.
        n_layers: usize,
    },
    /// A weight lies beyond the float type that it is to be stored in.
    #[error("`{tensor}`: row {row}, column {col}: {value:e} is beyond {float}")]
    FloatOverflow {
        /// The tensor.
        tensor: String,
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight.
        value: f32,
        /// The type asked for.
        float: FloatType,
    },
    /// The output would replace what it is made from.
    #[error("{} is the model that is being compressed", path.display())]
    OutputIsSource {
        /// The output.
        path: PathBuf,
    },
    /// Whoever watches asked to stop.
    #[error("stopped; what is finished of {} is kept beside it", path.display())]
    Stopped {
        /// The output.
        path: PathBuf,
    },
    /// A format of packed weights without any.
    #[error("recipe `{recipe}` quantizes no tensor of {model}, and {format} is for those that are{because}")]
    NothingToDo {
        /// The format's name.
        format: &'static str,
        /// The recipe's name.
        recipe: String,
        /// The model.
        model: String,
        /// Why not one whose codes could have been taken over, with what stands before it; empty if there is none.
        because: String,
    },
    /// What was read back from the output is not what was decided.
    #[error("{}: `{tensor}` reads back otherwise than it was written", path.display())]
    Verify {
        /// The output.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A file that the caller named could not be read.
    #[error("{}: {source}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A result could not be written.
    #[error("{}: {source}", path.display())]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A model to compare with others is named twice.
    #[error("{} and {} are the same model", path.display(), other.display())]
    MadeTwice {
        /// One path.
        path: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// A model to compare with others lies where compressed ones are to be written, or is such a folder.
    #[error("{} is to be measured, and compressed models would be written to {}", path.display(), folder.display())]
    MadeWhereWritten {
        /// The model.
        path: PathBuf,
        /// Where they would be written.
        folder: PathBuf,
    },
    /// A model to compare with others has another tokenizer than the dense one.
    #[error("{model}: the tokens of the text stand for other words than those of {dense}")]
    OtherTokens {
        /// The model.
        model: String,
        /// The dense model.
        dense: String,
    },
    /// A model could not be timed in a process of its own.
    #[error("timing {model}: {message}")]
    Timing {
        /// The model.
        model: String,
        /// What that process said.
        message: String,
    },
    /// The text has fewer tokens than one window.
    #[error("{text}: {tokens} tokens, less than one window of {window}")]
    ShortText {
        /// Where the text is from.
        text: String,
        /// Tokens it has.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// The calibration text has fewer tokens than were asked for.
    #[error("{text}: {found} tokens in whole windows, and {tokens} are to be run")]
    ShortCalibration {
        /// Where the text is from.
        text: String,
        /// Tokens it has.
        found: usize,
        /// Tokens wanted.
        tokens: usize,
    },
    /// A calibration file without a token.
    #[error("{file}: none of its {documents} documents has a token")]
    NoDocuments {
        /// The file.
        file: String,
        /// Documents in it.
        documents: usize,
    },
    /// A calibration text gives fewer windows than were asked for.
    #[error("{file}: {}", too_short(*tokens, *found, *samples, *length, *fit))]
    CalibrationTooShort {
        /// The file.
        file: String,
        /// Tokens of all its documents.
        tokens: usize,
        /// Windows that they give.
        found: usize,
        /// Windows wanted.
        samples: usize,
        /// Tokens of a window.
        length: usize,
        /// How documents are cut.
        fit: Fit,
    },
    /// No calibration window could be made.
    #[error("{samples} calibration windows of {length} tokens hold no text")]
    CalibrationSize {
        /// Windows wanted.
        samples: usize,
        /// Tokens of a window.
        length: usize,
    },
    /// A calibration window has padding in place of text.
    #[error("{file}: calibration window {window} would be all padding")]
    PaddedWindow {
        /// The file.
        file: String,
        /// Counted from 0.
        window: usize,
    },
    /// Even the smallest forms take more than the budget.
    #[error(
        "{model} as {format} within {budget} bytes ({budget_bits:.2} bits/weight): the smallest that can be written is {smallest} bytes ({smallest_bits:.2} bits/weight)"
    )]
    BudgetTooSmall {
        /// The model.
        model: String,
        /// The format's name.
        format: &'static str,
        /// Bytes allowed.
        budget: u64,
        /// The same as bits a weight.
        budget_bits: f64,
        /// Bytes of the smallest output, every file counted.
        smallest: u64,
        /// The same as bits a weight.
        smallest_bits: f64,
    },
    /// A tensor that no form can hold.
    #[error("`{tensor}`: no form of {format} holds its weights")]
    NoForm {
        /// The tensor.
        tensor: String,
        /// The format's name.
        format: &'static str,
    },
    /// A rounded model that gave no finite prediction.
    #[error("{model}: a rounded model's predictions are not finite on the calibration text")]
    NotFiniteOnCalibration {
        /// The model.
        model: String,
    },
    /// A recipe that asks for a search was to be planned as it is.
    #[error("recipe `{recipe}` asks for a search, which has to be run before it can be planned")]
    NotSearched {
        /// The recipe's name.
        recipe: String,
    },
    /// The file is no table of sensitivities.
    #[error("{}: {message}", path.display())]
    MalformedTable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A table that was measured for something else.
    #[error("the table of {table} is none for {model}: {what}")]
    ForeignTable {
        /// The model that the table is of.
        table: String,
        /// The model at hand.
        model: String,
        /// How they differ.
        what: String,
    },
    /// From reading or writing a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] bitmill_checkpoint::Error),
    /// From tokenizers and task files.
    #[error(transparent)]
    Text(#[from] bitmill_text::Error),
    /// From running the model.
    #[error(transparent)]
    Model(#[from] bitmill_model::Error),
    /// From measuring quality.
    #[error(transparent)]
    Eval(#[from] bitmill_eval::Error),
    /// From summing what matrices multiply.
    #[error(transparent)]
    Calib(#[from] bitmill_calib::Error),
    /// From measuring speed.
    #[error(transparent)]
    Bench(#[from] bitmill_bench::Error),
}

fn too_short(tokens: usize, found: usize, samples: usize, length: usize, fit: Fit) -> String {
    let plural = if found == 1 { "" } else { "s" };
    match fit {
        Fit::Pack => format!(
            "its {tokens} tokens make {found} window{plural} of {length}, and {samples} were asked for"
        ),
        Fit::Truncate => {
            format!(
                "it has {found} document{plural} of {length} tokens or more, and {samples} were asked for"
            )
        }
    }
}

impl Error {
    /// Whether the same run may come further another time: not if its input is at fault, or what it wrote.
    pub(crate) fn may_go_on(&self) -> bool {
        use bitmill_checkpoint::Error::{DiskFull, Io, TargetExists, TargetFolder, TargetNotReplaceable};
        matches!(
            self,
            Self::Stopped { .. }
                | Self::Checkpoint(
                    DiskFull { .. }
                        | Io { .. }
                        | TargetExists { .. }
                        | TargetFolder { .. }
                        | TargetNotReplaceable { .. }
                )
        )
    }

    /// What the reader can change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownRecipe { .. } => {
                Some("`bitmill recipes` lists the presets; a recipe file ends in .toml".into())
            }
            Self::OtherTask { .. } => Some(
                "restore the task's file, record the baseline again, or leave tasks out with --no-tasks"
                    .into(),
            ),
            Self::WriteStates { .. } => {
                Some("states between layers lie beside the output: make room on that disk, then run this again".into())
            }
            Self::StatesGone { .. } => Some("`--restart` begins anew".into()),
            Self::Fallback { .. } => {
                Some("give more calibration tokens, or leave --strict out: it is then rounded by its weights alone".into())
            }
            Self::Outliers { to, .. } => Some(format!(
                "leave --strict out: it is then stored as {to}; a step of kind `rotate` or `smooth` spreads outliers; `outliers = \"report\"` in [calibration] stores it as it is asked"
            )),
            Self::UnlikeCalibration { .. } => Some(
                "one pass has one set of tokens: give both recipes the same, by --calibration, --samples, --length and --held-out say, or run them one after the other"
                    .into(),
            ),
            Self::TooMuchMemory { calibrates: true, .. } => Some(
                "give fewer --samples or a shorter --length; `memory` in [calibration] is what activations may take"
                    .into(),
            ),
            Self::TooMuchMemory { .. } => Some("raise --max-memory, or compute with fewer --threads".into()),
            Self::UnlikeMethods { .. } => Some("give both one step, or one `damping`, `order` and `asymmetry`".into()),
            Self::HalfLearned { .. } => {
                Some("learn all of the layer with the same `iterations`, `batch`, `rate`, `minmax` and `begin`, or round the rest with `rtn`".into())
            }
            Self::MalformedLine { .. } => Some("correct or remove the line".into()),
            Self::NotAdjustable { .. } => None,
            Self::NoRotation { .. } => Some("take the step of kind `rotate` out, or its `values`".into()),
            Self::ReadRecipe { .. } => Some("`bitmill recipes` lists what needs no file".into()),
            Self::MalformedRecipe { .. } => {
                Some("`bitmill recipes NAME` prints a preset as a file to start from".into())
            }
            Self::NoUse { what, .. } if *what == CALIBRATION_TOKENS => Some(
                "they are for recipes that look at what weights multiply: `gptq_`, `gptaq_`, `awq_` or `learned_` before this one's name, or `imatrix_` before a mix's"
                    .into(),
            ),
            Self::NoUse { .. } => {
                Some("it is for steps of kind `mix` and `block`, such as those of the preset q4_k_m".into())
            }
            Self::UnevenRanks { .. } => {
                Some("smaller groups, or a `tensor_parallel` of fewer ranks; heads cannot be padded".into())
            }
            Self::CacheRange { .. } => Some(
                "leave `[kv_cache]` out of the recipe; or look with `bitmill eval` whether the source itself computes".into(),
            ),
            Self::InputRange { .. } => Some(
                "more --samples, so that every expert has tokens; or `activations = \"dynamic\"`".into(),
            ),
            Self::OtherFormat { .. } => Some(
                "gguf is for steps of kind `mix` and `block`, bitsandbytes for `type = \"nf4\"`, the other folder formats for those of kind `rtn`"
                    .into(),
            ),
            Self::NoPlace { .. } => {
                Some("leave out --to, or take it out of a copy of the recipe (`bitmill recipes NAME` prints one)".into())
            }
            Self::NotHeld { .. } => Some(
                "compressed-tensors holds every width, group size and mixture; or skip this tensor".into(),
            ),
            Self::PatternMatchesNothing { pattern, .. } if pattern.contains("lm_head") => Some(
                "a model with a tied head has no `lm_head.weight`: it is `model.embed_tokens.weight` again"
                    .into(),
            ),
            Self::PatternMatchesNothing { .. } => Some(
                "`bitmill inspect MODEL --tensors` lists the names; `*` stands for any characters".into(),
            ),
            Self::PatternMatchesNoMatrix { .. } => {
                Some("name weight matrices, such as `*.mlp.*.weight`".into())
            }
            Self::SplitFusion { members, .. } => Some(format!("give {members} of a layer one step")),
            Self::ExpertsDiffer { .. } => {
                Some("give the experts of a layer one step: `*.mlp.experts.*.down_proj.weight`".into())
            }
            Self::AlreadyQuantized { .. } => Some(
                "start from the original weights, or accept a second loss with --allow-requantize".into(),
            ),
            Self::PromptTooLong { .. } => Some("say it in fewer words".into()),
            Self::Quantize { source, .. } => source.hint(),
            Self::Prune { source, .. } => source.hint(),
            Self::DepthRemoves { n_layers, .. } => Some(format!(
                "one layer at least goes and one stays: a fraction of 1/{n_layers} is one layer"
            )),
            Self::SparseBesideCodes { .. } => {
                Some("sparse storage is for floats: take it out, or the step that quantizes".into())
            }
            Self::NoSuchLayer { .. } => Some("layers are counted from 0".into()),
            Self::OutputIsSource { .. } => {
                Some("write beside it; the original may be removed once the output is there".into())
            }
            Self::Stopped { .. } => {
                Some("the same command goes on where it stopped; with --restart it begins anew".into())
            }
            Self::FloatOverflow { float: FloatType::F16, .. } => {
                Some("bf16 spans every f32: choose that, or keep this tensor in its own type".into())
            }
            Self::FloatOverflow { .. } => Some("keep this tensor in f32".into()),
            Self::NothingToDo { .. } => {
                Some("see what `targets` and `skip` leave; plain floats are written as `hugging-face`, and codes are chosen again by a recipe with --allow-requantize".into())
            }
            Self::MadeTwice { .. } => Some("name it once: a model has one row".into()),
            Self::MadeWhereWritten { .. } => Some("write to another folder, with --output".into()),
            Self::OtherTokens { .. } => Some("compare a model with the one it was made from".into()),
            Self::Verify { .. } => {
                Some("the disk or memory is faulty, or this is a bug: run it again".into())
            }
            Self::ShortText { .. } => Some("give a longer --text or a shorter --window".into()),
            Self::ShortCalibration { .. } => Some("give a longer --calibration or fewer --tokens".into()),
            Self::NoDocuments { .. } => Some("give a text with words in it, or none: one is built in".into()),
            Self::CalibrationTooShort { tokens, found, samples, length, .. } => {
                let shorter = (tokens / samples).min(length - 1);
                let mut ways = Vec::new();
                if *found > 0 {
                    ways.push(format!("{found} samples"));
                }
                if shorter > 0 {
                    ways.push(format!("a length of about {shorter}"));
                }
                ways.push("more text".into());
                Some(format!("give {}", ways.join(", or ")))
            }
            Self::CalibrationSize { .. } => Some(
                "give samples of at least 1 and a length of at least 2, within the model's context".into(),
            ),
            Self::PaddedWindow { .. } => {
                Some("the data set was saved padded: take its texts from before it was tokenized".into())
            }
            Self::BudgetTooSmall { smallest_bits, .. } => {
                Some(format!("a --budget of {:.2}bpw can be reached", (smallest_bits * 100.0).ceil() / 100.0))
            }
            Self::NotFiniteOnCalibration { .. } => {
                Some("search with --sensitivity weights, which runs no model".into())
            }
            Self::NotSearched { .. } => {
                Some("`bitmill search MODEL --budget 4.5bpw -o FILE` writes the recipe".into())
            }
            Self::MalformedTable { .. } | Self::ForeignTable { .. } => {
                Some("`bitmill search` without --table measures anew".into())
            }
            Self::NoForm { .. } | Self::ReadFile { .. } | Self::WriteFile { .. } | Self::Timing { .. } => {
                None
            }
            Self::Checkpoint(error) => error.hint(),
            Self::Text(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Eval(error) => error.hint(),
            Self::Bench(error) => error.hint(),
            Self::Calib(error) => error.hint(),
        }
    }
}
