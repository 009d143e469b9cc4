//! What the host can measure, by name.
//!
//! A name is all that crosses the boundary: a host may offer signals that this version of the crate has no
//! constant for (`Signal::named`), and one that lacks a signal that a plugin asks for refuses it by its name.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! names {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $constant:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(Cow<'static, str>);

        impl $type {
            $($(#[$doc])* pub const $constant: $type = $type(Cow::Borrowed($name));)+

            /// All that this version of the crate has a constant for.
            pub const ALL: &'static [$type] = &[$($type::$constant,)+];

            /// The one of this name, whether or not this crate knows it.
            pub fn named(name: impl Into<Cow<'static, str>>) -> Self {
                $type(name.into())
            }

            /// Its name, as it stands in configs and messages.
            pub fn name(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

names! {
    /// A number the host measures per module and optimiser step, on the device.
    ///
    /// Norms run over the real tokens of the whole step (every micro-batch of it), padding excluded. A module that
    /// sees one token a sequence, as a pooler does, is measured as if that one stood for all of them, so that its
    /// norms compare with the others'.
    Signal {
        /// Sum of |y| over the module's output `y = (W + ΔW)x`.
        ACTIVATION_L1 = "activation_l1",
        /// Frobenius norm of the module's output `y = (W + ΔW)x`.
        ACTIVATION_L2 = "activation_l2",
        /// Frobenius norm of the adapter's share `ΔW·x` (Zhou et al. 2024, LoRA-drop, eq. 3, before squaring).
        DELTA_L2 = "delta_l2",
        /// Sum of |g| over the accumulated gradient of the adapter's parameters.
        GRADIENT_L1 = "gradient_l1",
        /// Euclidean norm of the accumulated gradient of the adapter's parameters.
        GRADIENT_L2 = "gradient_l2",
        /// Frobenius norm of the adapter's weight: LoRA's `ΔW = s·BA`, VeRA's `ΔW = Λ_b·B·Λ_d·A`.
        WEIGHT_L2 = "weight_l2",
        /// Frobenius norm of the module's input x.
        INPUT_L2 = "input_l2",
        /// Frobenius norm of the gradient of the step's mean loss by the module's output, wherever one passes: where the
        /// module or something that it reads trains, and of all modules in a probing step. Of tokens whose output nothing reads,
        /// as of all but the first of a sequence above the last layer's keys and values, it is zero.
        OUTPUT_GRADIENT_L2 = "output_gradient_l2",
        /// `Σ θ·g` over the adapter's parameters θ and their accumulated gradient g, which may be negative: what the
        /// loss would change by, to first order, if the adapter were grown by as much as it is.
        GRADIENT_DOT_WEIGHT = "gradient_dot_weight",
        /// `Σ |θ·g|` of the same (Zhang et al. 2023, AdaLoRA, eq. 8, summed).
        GRADIENT_DOT_WEIGHT_ABS = "gradient_dot_weight_abs",
        /// Empirical Fisher information of the adapter's parameters, its trace: `Σ_e Σ_θ (∂L_e/∂θ)²` over the step's
        /// examples e, where L_e is the loss of one example alone. Exact, from the same backward pass.
        FISHER = "fisher",
        /// `‖Δθ‖`, the size of the update that the optimiser gave the adapter's parameters at the step before this one;
        /// `None` for a module that it did not update there.
        UPDATE_L2 = "update_l2",
        /// Sum of |w| over the frozen weight W. Measured once: see [`Moment::Start`](crate::Moment::Start).
        FROZEN_WEIGHT_L1 = "frozen_weight_l1",
        /// Frobenius norm of the frozen weight W. Measured once: see [`Moment::Start`](crate::Moment::Start).
        FROZEN_WEIGHT_L2 = "frozen_weight_l2",
    }
}

names! {
    /// Values that can be copied to a plugin whole, which costs a device-to-host copy.
    RawValue {
        /// The module's output, `[tokens, out_features]`, row-major, of the step's last micro-batch.
        ACTIVATION = "activation",
        /// The gradient of every adapter parameter, accumulated over the step: LoRA's A, then B, DoRA's m and a
        /// bias that trains; VeRA's λ_d, then λ_b.
        GRADIENT = "gradient",
        /// Every adapter parameter, in the same order.
        WEIGHT = "weight",
        /// The norm of each column of the module's input over the step's tokens, `[in_features]` (Sun et al. 2024,
        /// Wanda, eq. 1, beside the weights).
        INPUT_COLUMN_L2 = "input_column_l2",
        /// The frozen weight W, `[out_features, in_features]`, row-major. Copied once: see
        /// [`Moment::Start`](crate::Moment::Start).
        FROZEN_WEIGHT = "frozen_weight",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_nobody_knows_yet_is_carried_like_any_other() {
        let text = r#"["activation_l2","entropy"]"#;
        let signals: Vec<Signal> = serde_json::from_str(text).unwrap();
        assert_eq!(signals, [Signal::ACTIVATION_L2, Signal::named("entropy")]);
        assert_eq!(serde_json::to_string(&signals).unwrap(), text);
        assert_eq!(Signal::GRADIENT_L2.to_string(), "gradient_l2");
        assert!(Signal::ALL.contains(&signals[0]) && !Signal::ALL.contains(&signals[1]));
    }
}
