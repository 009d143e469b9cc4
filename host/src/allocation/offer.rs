//! What the host can measure: the names that a plugin may ask for, and what becomes of others.

use dynalora_plugin_api as api;
use dynalora_plugin_api::{Needs, Wants};

use crate::error::{Error, Result};

macro_rules! offered {
    ($(#[$about:meta])* $type:ident: $named:ident { $($variant:ident = $name:ident,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $(#[doc = concat!("[`", stringify!($name), "`](api::", stringify!($named), "::", stringify!($name), ")")] $variant,)+
        }

        impl $type {
            /// All that is offered.
            pub const ALL: &'static [$type] = &[$($type::$variant,)+];

            /// The name that crosses the boundary.
            pub fn name(self) -> api::$named {
                match self {
                    $($type::$variant => api::$named::$name,)+
                }
            }

            /// The one of this name, if it is offered.
            pub fn named(name: &api::$named) -> Option<Self> {
                $type::ALL.iter().copied().find(|offered| offered.name() == *name)
            }
        }
    };
}

offered! {
    /// The signals that are offered.
    Signal: Signal {
        ActivationL1 = ACTIVATION_L1,
        ActivationL2 = ACTIVATION_L2,
        DeltaL2 = DELTA_L2,
        GradientL1 = GRADIENT_L1,
        GradientL2 = GRADIENT_L2,
        WeightL2 = WEIGHT_L2,
        InputL2 = INPUT_L2,
        OutputGradientL2 = OUTPUT_GRADIENT_L2,
        GradientDotWeight = GRADIENT_DOT_WEIGHT,
        GradientDotWeightAbs = GRADIENT_DOT_WEIGHT_ABS,
        Fisher = FISHER,
        UpdateL2 = UPDATE_L2,
        FrozenWeightL1 = FROZEN_WEIGHT_L1,
        FrozenWeightL2 = FROZEN_WEIGHT_L2,
    }
}

offered! {
    /// The raw values that are offered.
    RawValue: RawValue {
        Activation = ACTIVATION,
        Gradient = GRADIENT,
        Weight = WEIGHT,
        InputColumnL2 = INPUT_COLUMN_L2,
        FrozenWeight = FROZEN_WEIGHT,
    }
}

impl Signal {
    /// Whether it is taken of the modules' inputs or outputs, so that they have to be run.
    pub fn of_outputs(self) -> bool {
        use Signal::{ActivationL1, ActivationL2, DeltaL2, InputL2};
        matches!(self, ActivationL1 | ActivationL2 | DeltaL2 | InputL2)
    }

    /// Whether it needs gradients, which inactive modules have in probing steps alone.
    pub fn of_gradients(self) -> bool {
        use Signal::{Fisher, GradientDotWeight, GradientDotWeightAbs, OutputGradientL2};
        let of_pairs = matches!(self, Signal::GradientL1 | Signal::GradientL2 | Fisher);
        of_pairs
            || matches!(
                self,
                GradientDotWeight | GradientDotWeightAbs | OutputGradientL2
            )
    }

    /// Whether it is measured once, before the first step.
    pub fn once(self) -> bool {
        matches!(self, Signal::FrozenWeightL1 | Signal::FrozenWeightL2)
    }
}

impl RawValue {
    /// Whether it is copied once, before the first step.
    pub fn once(self) -> bool {
        self == RawValue::FrozenWeight
    }
}

/// What is to be measured of one step, or of all the steps of a run at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Reductions.
    pub signals: Vec<Signal>,
    /// Values whole.
    pub raw: Vec<RawValue>,
    /// The sensitivity of every component.
    pub components: bool,
}

impl Wanted {
    /// What `needs` name, of the plugin `name` of this `kind`; an error for a name that is not offered.
    pub fn of(kind: &str, name: &str, needs: &Needs) -> Result<Self> {
        let refuse = |what: &str, asked: &str, offered: Vec<String>| {
            Error::user(format!(
                "the {kind} `{name}` needs the {what} `{asked}`, which this version of dynalora does not offer"
            ))
            .help(format!(
                "it offers {}; a newer dynalora may offer more",
                offered.join(", ")
            ))
        };
        let mut wanted = Wanted {
            components: needs.components,
            ..Wanted::default()
        };
        for signal in &needs.signals {
            let offered = || Signal::ALL.iter().map(|it| it.name().to_string()).collect();
            let known = Signal::named(signal);
            let known = known.ok_or_else(|| refuse("signal", signal.name(), offered()))?;
            wanted.add_signal(known);
        }
        for raw in &needs.raw {
            let offered = || {
                RawValue::ALL
                    .iter()
                    .map(|it| it.name().to_string())
                    .collect()
            };
            let known = RawValue::named(raw);
            let known = known.ok_or_else(|| refuse("raw value", raw.name(), offered()))?;
            wanted.add_raw(known);
        }
        Ok(wanted)
    }

    /// What of it is wanted of a step.
    pub fn at(&self, wants: Wants) -> Self {
        let Wanted { signals, raw, .. } = self;
        let signals = signals.iter().filter(|it| wants.signals && !it.once());
        let raw = raw.iter().filter(|it| wants.raw && !it.once());
        Wanted {
            signals: signals.copied().collect(),
            raw: raw.copied().collect(),
            components: self.components && wants.components,
        }
    }

    /// What of it is measured once, before the first step.
    pub fn once(&self) -> Self {
        let Wanted { signals, raw, .. } = self;
        Wanted {
            signals: signals.iter().copied().filter(|it| it.once()).collect(),
            raw: raw.iter().copied().filter(|it| it.once()).collect(),
            components: false,
        }
    }

    /// Whether it is nothing.
    pub fn is_nothing(&self) -> bool {
        self.signals.is_empty() && self.raw.is_empty() && !self.components
    }

    /// Both.
    pub fn and(mut self, other: &Wanted) -> Self {
        for signal in &other.signals {
            self.add_signal(*signal);
        }
        for raw in &other.raw {
            self.add_raw(*raw);
        }
        self.components |= other.components;
        self
    }

    fn add_signal(&mut self, signal: Signal) {
        if !self.signals.contains(&signal) {
            self.signals.push(signal);
        }
    }

    fn add_raw(&mut self, raw: RawValue) {
        if !self.raw.contains(&raw) {
            self.raw.push(raw);
        }
    }

    /// Whether any of these signals is wanted.
    pub fn any(&self, signals: &[Signal]) -> bool {
        self.signals.iter().any(|signal| signals.contains(signal))
    }

    /// Whether something of the modules' inputs or outputs is wanted, so that those below the lowest active module and all
    /// tokens of the last layer have to be run.
    pub fn outputs(&self) -> bool {
        self.signals.iter().any(|signal| signal.of_outputs())
            || self.raw.contains(&RawValue::Activation)
            || self.raw.contains(&RawValue::InputColumnL2)
    }

    /// Whether something of the adapters' gradients is wanted.
    pub fn gradients(&self) -> bool {
        self.signals.iter().any(|signal| signal.of_gradients())
            || self.raw.contains(&RawValue::Gradient)
            || self.components
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_offered_has_a_constant_and_a_name_of_its_own() {
        let names: Vec<api::Signal> = Signal::ALL.iter().map(|signal| signal.name()).collect();
        assert_eq!(names, api::Signal::ALL);
        let names: Vec<api::RawValue> = RawValue::ALL.iter().map(|raw| raw.name()).collect();
        assert_eq!(names, api::RawValue::ALL);
    }

    #[test]
    fn what_is_not_offered_is_refused_with_what_is() {
        let needs = Needs::signals([api::Signal::DELTA_L2, api::Signal::named("entropy")]);
        let error = Wanted::of("scorer", "mine", &needs).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let help = miette::Diagnostic::help(&error).map_or(String::new(), |help| help.to_string());
        assert!(
            error.to_string().contains("the signal `entropy`"),
            "{error}"
        );
        assert!(
            help.contains("delta_l2") && help.contains("gradient_l2"),
            "{help}"
        );
        let needs = Needs::default().and_raw([api::RawValue::named("hessian")]);
        let error = Wanted::of("allocator", "mine", &needs).unwrap_err();
        assert!(
            error.to_string().contains("the raw value `hessian`"),
            "{error}"
        );
    }
}
