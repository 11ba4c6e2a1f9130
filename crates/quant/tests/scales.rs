//! AWQ and SmoothQuant against numpy implementations of the authors' formulas: tools/golden/scales.py.

use bitmill_quant::{AwqOptions, Clip, Inputs, RtnGrid, ScaleRule, awq, smooth};
use bitmill_tensor::{Bits, FloatType, Granularity, Grouped, ZeroPoint};
use serde_json::Value;

struct Golden {
    json: Value,
    features: usize,
    matrices: Vec<Vec<f32>>,
    x: Vec<f32>,
}

impl Golden {
    fn read() -> Self {
        let json: Value = serde_json::from_str(include_str!("golden/scales.json")).unwrap();
        let features = json["features"].as_u64().unwrap() as usize;
        let matrices = json["matrices"].as_array().unwrap().iter().map(floats).collect();
        let x = floats(&json["x"]);
        Self { features, matrices, x, json }
    }

    fn cases(&self, name: &str) -> &[Value] {
        self.json[name].as_array().unwrap()
    }

    fn grid(&self, case: &Value) -> Grouped {
        let size = self.json["group_size"].as_u64().unwrap() as usize;
        let grid = RtnGrid {
            bits: Bits::new(case["bits"].as_u64().unwrap() as u8).unwrap(),
            granularity: Granularity::Group { size: size.try_into().unwrap() },
            zero_point: ZeroPoint::Asymmetric,
            scale: FloatType::F32,
        };
        grid.layout(self.features).unwrap()
    }

    /// Of each feature, over inputs.
    fn fold(&self, of: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let mut out = vec![0.0; self.features];
        for (at, x) in self.x.iter().enumerate() {
            out[at % self.features] = of(out[at % self.features], f64::from(x.abs()));
        }
        out
    }
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn assert_relative(found: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= bound * expected.abs(), "{what}, {at}: {found} and {expected}");
    }
}

#[test]
fn awq_finds_numpys_scales_and_errors() {
    let golden = Golden::read();
    let tokens = (golden.x.len() / golden.features) as f64;
    let mean: Vec<f32> = golden.fold(|sum, x| sum + x).into_iter().map(|sum| (sum / tokens) as f32).collect();
    let matrices: Vec<&[f32]> = golden.matrices.iter().map(Vec::as_slice).collect();
    assert_eq!(golden.cases("awq").len(), 6);
    for case in golden.cases("awq") {
        let rule = match case["duo"].as_bool().unwrap() {
            true => ScaleRule::ActivationsAndWeights,
            false => ScaleRule::Activations,
        };
        let options = AwqOptions { rule, ..AwqOptions::default() };
        let inputs = Inputs::Tokens(&golden.x);
        let found =
            awq::search_scales(&golden.grid(case), Clip::None, &matrices, &mean, inputs, &options).unwrap();
        let what = format!("{} bits, {rule:?}", case["bits"]);
        assert_eq!(found.alpha, case["alpha"].as_f64().unwrap() as f32, "{what}");
        assert_relative(&found.scales.unwrap(), &floats(&case["scales"]), 1e-5, &what);
        // f32 products, and codes that a last bit of `w · s` puts on the other side of a half.
        let errors = [found.error as f32, found.unscaled_error as f32];
        let expected = ["error", "unscaled"].map(|name| case[name].as_f64().unwrap() as f32);
        assert_relative(&errors, &expected, 1e-3, &what);
    }
}

#[test]
fn clips_are_numpys() {
    let golden = Golden::read();
    for case in golden.cases("clips") {
        let inputs = Inputs::Tokens(&golden.x);
        let clips =
            awq::search_clips(&golden.grid(case), &golden.matrices[0], golden.features, inputs).unwrap();
        assert_relative(&clips, &floats(&case["clips"]), 1e-6, &format!("{} bits", case["bits"]));
    }
}

#[test]
fn smooth_scales_are_numpys() {
    let golden = Golden::read();
    let max_abs: Vec<f32> = golden.fold(f64::max).into_iter().map(|x| x as f32).collect();
    let matrices: Vec<&[f32]> = golden.matrices.iter().map(Vec::as_slice).collect();
    for case in golden.cases("smooth") {
        let alpha = case["alpha"].as_f64().unwrap() as f32;
        let scales = smooth::scales(&max_abs, &matrices, alpha).unwrap();
        assert_relative(&scales, &floats(&case["scales"]), 1e-6, &format!("alpha {alpha}"));
    }
}
