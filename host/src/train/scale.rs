//! The scale of the loss in f16, whose smallest value is 6e-8: gradients that are smaller on their way back would be lost.
//! As PyTorch's `GradScaler` moves it, with its defaults.

use serde::{Deserialize, Serialize};

use super::step::StepResult;
use crate::kernel::Kernels;

/// Where it starts.
const FIRST: f32 = 65_536.0;
/// It is doubled after so many steps with finite gradients, and halved by one with others.
const GROWS_AFTER: u64 = 2000;
/// Where it ends: neither it nor its inverse is far from what f32 can hold.
const LIMITS: [f32; 2] = [1.0, (1u64 << 60) as f32];

/// What the loss is multiplied by before the backward pass, and what comes of it divided by: a power of two, so that
/// nothing is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor.
    pub scale: f32,
    /// Steps since it was moved.
    steps: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale {
            scale: FIRST,
            steps: 0,
        }
    }
}

impl LossScale {
    /// Takes in a step that gave finite gradients.
    pub fn held(&mut self) {
        self.steps += 1;
        if self.steps == GROWS_AFTER {
            self.move_by(2.0);
        }
    }

    /// Takes in a step. Where its loss is finite but a gradient is not, as where a product has overflowed, the scale is
    /// lowered and the step is none to update by; at the lower limit the scale is not what is to blame.
    pub fn lowered_by<B: Kernels>(&mut self, step: &StepResult<B>) -> bool {
        let norms = step.gradient_norms.iter().flatten();
        let finite = norms.chain([&step.gradient_norm]).all(|it| it.is_finite());
        let blamed = step.loss.is_finite() && !finite && self.scale > LIMITS[0];
        if blamed {
            self.move_by(0.5);
        }
        blamed
    }

    fn move_by(&mut self, factor: f32) {
        let [least, most] = LIMITS;
        self.scale = (self.scale * factor).clamp(least, most);
        self.steps = 0;
    }

    /// Whether it can have come of so many steps.
    pub fn is_possible(self, steps: u64) -> bool {
        let [least, most] = LIMITS;
        let power = self.scale.to_bits() & 0x007f_ffff == 0;
        power && (least..=most).contains(&self.scale) && self.steps <= steps.min(GROWS_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn step(loss: f64, gradient_norm: f64, of_inactive: f64) -> StepResult<Flex> {
        StepResult {
            loss,
            weight: 1,
            gradient_norm,
            gradient_norms: vec![None, Some(of_inactive)],
            gradients: Vec::new(),
            head_gradients: Vec::new(),
            observation: Default::default(),
        }
    }

    #[test]
    fn the_scale_moves_as_pytorchs() {
        let mut scale = LossScale::default();
        assert!(!scale.lowered_by(&step(1.0, 2.0, 3.0)));
        for _ in 0..GROWS_AFTER - 1 {
            scale.held();
        }
        assert_eq!(scale.scale, FIRST);
        scale.held();
        assert_eq!(scale.scale, 2.0 * FIRST);
        scale.held();
        // An inactive module's gradient that is only measured counts too, and the count begins anew.
        assert!(scale.lowered_by(&step(1.0, 2.0, f64::INFINITY)));
        assert_eq!((scale.scale, scale.steps), (FIRST, 0));
        // A loss that is not finite is not the scale's doing.
        assert!(!scale.lowered_by(&step(f64::NAN, f64::NAN, f64::NAN)));
        for _ in 0..16 {
            assert!(scale.lowered_by(&step(1.0, f64::NAN, 1.0)));
            assert!(scale.is_possible(0));
        }
        assert_eq!(scale.scale, 1.0);
        assert!(!scale.lowered_by(&step(1.0, f64::NAN, 1.0)));
    }

    #[test]
    fn it_has_an_end() {
        let mut scale = LossScale::default();
        for _ in 0..100 * GROWS_AFTER {
            scale.held();
        }
        assert_eq!(scale.scale, LIMITS[1]);
        assert!(scale.is_possible(100 * GROWS_AFTER));
        for (scale, steps) in [(0.5, 0), (3.0, 0), (f32::NAN, 0), (-2.0, 0), (2.0, 9)] {
            assert!(!LossScale { scale, steps }.is_possible(8), "{scale}");
        }
    }
}
