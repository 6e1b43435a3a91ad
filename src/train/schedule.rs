//! What changes from step to step: the learning rate, which exits are trained and with what weight, and how
//! often a layer is dropped (LayerSkip, arXiv 2404.16710, sections 4.1 and 4.2).

use std::f64::consts::{LN_2, PI};

/// Which exits a step trains. The last layer's is always among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curriculum {
    /// Every `every`-th layer, shifting by one layer each step.
    Rotational {
        /// R: distance between the exits of one step.
        every: usize,
    },
    /// From the last layer down, one more every T/(2L) steps.
    Gradual,
    /// Every exit in every step.
    Off,
}

impl Curriculum {
    /// C(t, l): whether step `step` of `steps` trains the exit after layer `layer` of `layers`.
    pub fn trains(&self, layer: usize, layers: usize, step: usize, steps: usize) -> bool {
        layer + 1 == layers
            || match *self {
                Curriculum::Rotational { every } => layer % every == step % every,
                // When t·2L/T reaches L − 1 − l; in integers, wide enough for any run.
                Curriculum::Gradual => {
                    2 * layers as u128 * step as u128 >= (layers - 1 - layer) as u128 * steps as u128
                }
                Curriculum::Off => true,
            }
    }
}

/// e(l): how much each exit weighs in the loss, before the curriculum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitScale {
    /// LayerSkip's: e(l) = s·Σ_{i≤l} i below the last layer, e(L−1) = L − 1 + s·Σ_{i≤L−2} i. Made for deep
    /// models that exit late; the first few exits get next to nothing.
    Depth,
    /// e(l) = s below the last layer, e(L−1) = 1: for small models that draft with their first layers.
    Equal,
}

/// ẽ(t, l) for every layer: the weights of the exits in one step's loss, which sum to 1. They are e(l), zero
/// where the curriculum does not train, divided by their sum; `scale` is s. A model of one layer has the one weight 1.
pub fn exit_weights(
    weights: &mut [f64],
    form: ExitScale,
    scale: f64,
    curriculum: Curriculum,
    step: usize,
    steps: usize,
) {
    let layers = weights.len();
    let triangle = |l: usize| (l * (l + 1) / 2) as f64;
    for (layer, weight) in weights.iter_mut().enumerate() {
        *weight = match (layer, form) {
            _ if layers == 1 => 1.0,
            _ if !curriculum.trains(layer, layers, step, steps) => 0.0,
            (_, ExitScale::Depth) if layer + 1 == layers => {
                (layers - 1) as f64 + scale * triangle(layers - 2)
            }
            (_, ExitScale::Depth) => scale * triangle(layer),
            (_, ExitScale::Equal) => {
                if layer + 1 == layers {
                    1.0
                } else {
                    scale
                }
            }
        };
    }
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
}

/// S(t): how layer dropout grows over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropoutGrowth {
    /// S(t) = e^{t·ln 2/(T−1)} − 1, from 0 to 1: for training from scratch.
    Exponential,
    /// S(t) = 1: for training a model further.
    Constant,
}

/// p(l, t) = S(t)·(e^{l·ln 2/(L−1)} − 1)·p_max: the probability that a sample skips layer `layer` in step `step`.
pub fn dropout_probability(
    p_max: f64,
    s: DropoutGrowth,
    layer: usize,
    layers: usize,
    step: usize,
    steps: usize,
) -> f64 {
    let growth =
        |i: usize, n: usize| if n < 2 { 1.0 } else { (i as f64 * LN_2 / (n - 1) as f64).exp() - 1.0 };
    let over_time = match s {
        DropoutGrowth::Exponential => growth(step, steps),
        DropoutGrowth::Constant => 1.0,
    };
    over_time * growth(layer, layers) * p_max
}

/// Learning rate of `step`: linear over the first `warm_up` steps to `peak`, then half a cosine to `peak / 20`.
pub fn learning_rate(peak: f32, step: usize, warm_up: usize, steps: usize) -> f32 {
    if step < warm_up {
        return peak * (step + 1) as f32 / warm_up as f32;
    }
    let done = (step - warm_up) as f64 / (steps - warm_up).max(1) as f64;
    let floor = 0.05;
    peak * (floor + (1.0 - floor) * 0.5 * (1.0 + (PI * done).cos())) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(curriculum: Curriculum, step: usize, steps: usize) -> Vec<usize> {
        (0..6).filter(|&l| curriculum.trains(l, 6, step, steps)).collect()
    }

    #[test]
    fn rotational_exits_shift_each_step() {
        let curriculum = Curriculum::Rotational { every: 3 };
        assert_eq!(trained(curriculum, 0, 100), [0, 3, 5]);
        assert_eq!(trained(curriculum, 1, 100), [1, 4, 5]);
        assert_eq!(trained(curriculum, 2, 100), [2, 5]);
        assert_eq!(trained(curriculum, 3, 100), [0, 3, 5]);
    }

    #[test]
    fn gradual_exits_grow_downwards_until_half_of_the_run() {
        // T/(2L) = 120/12 = 10 steps an exit.
        assert_eq!(trained(Curriculum::Gradual, 0, 120), [5]);
        assert_eq!(trained(Curriculum::Gradual, 9, 120), [5]);
        assert_eq!(trained(Curriculum::Gradual, 10, 120), [4, 5]);
        assert_eq!(trained(Curriculum::Gradual, 49, 120), [1, 2, 3, 4, 5]);
        assert_eq!(trained(Curriculum::Gradual, 50, 120), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn exit_weights_follow_the_formula() {
        // L = 4, s = 0.5: e = 0, 0.5, 1.5 and 3 + 0.5·(0 + 1 + 2) = 4.5; their sum is 6.5.
        let mut weights = [0.0; 4];
        exit_weights(&mut weights, ExitScale::Depth, 0.5, Curriculum::Off, 0, 10);
        for (weight, expected) in weights.iter().zip([0.0, 0.5 / 6.5, 1.5 / 6.5, 4.5 / 6.5]) {
            assert!((weight - expected).abs() < 1e-12);
        }
        // R = 2 in step 1 trains layers 1 and 3.
        exit_weights(&mut weights, ExitScale::Depth, 0.5, Curriculum::Rotational { every: 2 }, 1, 10);
        for (weight, expected) in weights.iter().zip([0.0, 0.1, 0.0, 0.9]) {
            assert!((weight - expected).abs() < 1e-12);
        }
        // Equal weights, and the last exit's 1.
        exit_weights(&mut weights, ExitScale::Equal, 0.5, Curriculum::Off, 0, 10);
        for (weight, expected) in weights.iter().zip([0.2, 0.2, 0.2, 0.4]) {
            assert!((weight - expected).abs() < 1e-12);
        }
        let mut one = [0.0];
        exit_weights(&mut one, ExitScale::Depth, 0.0, Curriculum::Gradual, 0, 10);
        assert_eq!(one, [1.0]);
    }

    #[test]
    fn dropout_grows_with_depth_and_time() {
        let p =
            |layer, step, steps| dropout_probability(0.2, DropoutGrowth::Exponential, layer, 5, step, steps);
        assert_eq!(p(0, 99, 100), 0.0);
        assert_eq!(p(4, 0, 100), 0.0);
        assert!((p(4, 99, 100) - 0.2).abs() < 1e-12);
        // Halfway in both: (√2 − 1)²·p_max.
        assert!((p(2, 50, 101) - 0.2 * (2f64.sqrt() - 1.0).powi(2)).abs() < 1e-12);
        // A model that is trained further has its whole dropout from the first step on.
        let p = |layer, step| dropout_probability(0.2, DropoutGrowth::Constant, layer, 5, step, 100);
        assert_eq!(p(0, 0), 0.0);
        assert!((p(4, 0) - 0.2).abs() < 1e-12 && (p(4, 70) - 0.2).abs() < 1e-12);
        assert!((p(2, 0) - 0.2 * (2f64.sqrt() - 1.0)).abs() < 1e-12);
    }

    #[test]
    fn learning_rate_warms_up_and_falls() {
        assert_eq!(learning_rate(1.0, 0, 10, 110), 0.1);
        assert_eq!(learning_rate(1.0, 9, 10, 110), 1.0);
        assert!((learning_rate(1.0, 60, 10, 110) - 0.525).abs() < 1e-6);
        assert!((learning_rate(1.0, 109, 10, 110) - 0.05).abs() < 1e-3);
    }
}
