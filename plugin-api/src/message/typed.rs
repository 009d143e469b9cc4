//! Plain data as fields, and back: the names that calls have.

use std::borrow::Cow;

use super::{Fields, Value};
use crate::{
    Allocation, AllocationRequest, Error, LedgerEntry, Measured, Metric, ModuleInfo, Moment, Needs,
    Numbers, Observation, Pruning, Raw, RawValue, Result, ScoreRequest, Signal, Start, TrialLosses,
    TrialRequest, Trials, Upcoming, Wants,
};

impl Observation {
    /// As the fields of `observe`.
    pub fn to_fields(&self) -> Fields<'_> {
        let mut fields = Fields::new()
            .with("moment", Value::Text(self.moment.name().into()))
            .with("step", Value::Int(self.step))
            .with("total_steps", Value::Int(self.total_steps))
            .with("tokens", Value::Int(self.tokens))
            .with("examples", Value::Int(self.examples))
            .with("loss", Value::Real(self.loss))
            .with("learning_rate", Value::Real(self.learning_rate))
            .with("probing", Value::Flag(self.probing))
            .with("active", Value::Bools(Cow::Borrowed(&self.active)));
        if let Some(Metric { step, name, value }) = &self.metric {
            fields.put("metric.name", Value::Text(Cow::Borrowed(name)));
            fields.put("metric.step", Value::Int(*step));
            fields.put("metric.value", Value::Real(*value));
        }
        for Measured { signal, values } in &self.signals {
            let values = values.iter().map(|value| value.unwrap_or(f32::NAN));
            fields.put(format!("signals.{signal}"), Value::F32s(values.collect()));
        }
        for Raw { value, buffers } in &self.raw {
            fields.put_lists(&format!("raw.{value}"), buffers, Value::F32s);
        }
        if !self.components.is_empty() {
            fields.put_lists("components", &self.components, Value::F32s);
        }
        fields
    }

    /// From the fields of `observe`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        let signals = fields.under("signals.").map(|(name, _)| {
            let values = fields.f32s(&format!("signals.{name}"))?.unwrap_or_default();
            Ok(Measured {
                signal: Signal::named(name.to_owned()),
                values: values
                    .into_iter()
                    .map(|value| Some(value).filter(|value| !value.is_nan()))
                    .collect(),
            })
        });
        let raw = fields.under("raw.").map(|(name, _)| {
            Ok(Raw {
                value: RawValue::named(name.to_owned()),
                buffers: fields
                    .f32_lists(&format!("raw.{name}"))?
                    .unwrap_or_default(),
            })
        });
        let metric = match fields.text("metric.name")? {
            Some(name) => Some(Metric {
                name: name.to_owned(),
                step: fields.int("metric.step")?.unwrap_or_default(),
                value: fields.real("metric.value")?.unwrap_or_default(),
            }),
            None => None,
        };
        Ok(Observation {
            moment: fields.text("moment")?.map_or(Moment::Step, Moment::named),
            step: fields.int("step")?.unwrap_or_default(),
            total_steps: fields.int("total_steps")?.unwrap_or_default(),
            tokens: fields.int("tokens")?.unwrap_or_default(),
            examples: fields.int("examples")?.unwrap_or_default(),
            loss: fields.real("loss")?.unwrap_or_default(),
            learning_rate: fields.real("learning_rate")?.unwrap_or_default(),
            metric,
            probing: fields.flag("probing")?.unwrap_or_default(),
            active: fields.bools("active")?.unwrap_or_default(),
            signals: signals.collect::<Result<_>>()?,
            raw: raw.collect::<Result<_>>()?,
            components: fields.f32_lists("components")?.unwrap_or_default(),
        })
    }
}

impl Upcoming {
    /// As the fields of `wants`.
    pub fn to_fields(&self) -> Fields<'static> {
        let mut fields = Fields::new()
            .with("step", Value::Int(self.step))
            .with("total_steps", Value::Int(self.total_steps))
            .with("some_inactive", Value::Flag(self.some_inactive))
            .with("probing", Value::Flag(self.probing));
        for (name, step) in [
            ("previous_reallocation", self.previous_reallocation),
            ("next_reallocation", self.next_reallocation),
        ] {
            if let Some(step) = step {
                fields.put(name, Value::Int(step));
            }
        }
        fields
    }

    /// From the fields of `wants`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        Ok(Upcoming {
            step: fields.int("step")?.unwrap_or_default(),
            total_steps: fields.int("total_steps")?.unwrap_or_default(),
            previous_reallocation: fields.int("previous_reallocation")?,
            next_reallocation: fields.int("next_reallocation")?,
            some_inactive: fields.flag("some_inactive")?.unwrap_or_default(),
            probing: fields.flag("probing")?.unwrap_or_default(),
        })
    }
}

impl Wants {
    /// The names of its fields.
    pub const FIELDS: [&'static str; 4] = ["step", "signals", "raw", "components"];

    /// As the answer to `wants`.
    pub fn to_fields(self) -> Fields<'static> {
        let flags = [self.step, self.signals, self.raw, self.components];
        let mut fields = Fields::new();
        for (name, flag) in Wants::FIELDS.into_iter().zip(flags) {
            fields.put(name, Value::Flag(flag));
        }
        fields
    }

    /// From the answer to `wants`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        fields.only(&Wants::FIELDS)?;
        let flag = |name| Ok::<_, Error>(fields.flag(name)?.unwrap_or_default());
        Ok(Wants {
            step: flag("step")?,
            signals: flag("signals")?,
            raw: flag("raw")?,
            components: flag("components")?,
        })
    }
}

fn put_ledger(fields: &mut Fields<'_>, ledger: &[LedgerEntry]) {
    let entries = ledger.iter();
    let steps_active = entries.clone().map(|entry| entry.steps_active).collect();
    let times_chosen = entries.clone().map(|entry| entry.times_chosen).collect();
    // As numbers of which one can be missing: exact up to 2⁵³ steps.
    let last_chosen = entries
        .map(|entry| entry.last_chosen.map_or(f64::NAN, |step| step as f64))
        .collect();
    fields.put("ledger.steps_active", Value::U64s(steps_active));
    fields.put("ledger.times_chosen", Value::U64s(times_chosen));
    fields.put("ledger.last_chosen", Value::F64s(last_chosen));
}

fn get_ledger(fields: &Fields<'_>) -> Result<Vec<LedgerEntry>> {
    let steps_active = fields.u64s("ledger.steps_active")?.unwrap_or_default();
    let times_chosen = fields.u64s("ledger.times_chosen")?.unwrap_or_default();
    let last_chosen = fields.f64s("ledger.last_chosen")?.unwrap_or_default();
    let entries = steps_active.into_iter().zip(times_chosen).zip(last_chosen);
    Ok(entries
        .map(|((steps_active, times_chosen), last)| LedgerEntry {
            steps_active,
            times_chosen,
            last_chosen: Some(last)
                .filter(|last| !last.is_nan())
                .map(|last| last as u64),
        })
        .collect())
}

fn put_ranks(fields: &mut Fields<'_>, ranks: &[u32]) {
    let ranks = ranks.iter().map(|rank| u64::from(*rank)).collect();
    fields.put("ranks", Value::U64s(ranks));
}

fn get_ranks(fields: &Fields<'_>) -> Result<Vec<u32>> {
    let ranks = fields.u64s("ranks")?.unwrap_or_default();
    let narrow =
        |rank| u32::try_from(rank).map_err(|_| Error::from("`ranks` has a rank above 2³²"));
    ranks.into_iter().map(narrow).collect()
}

fn put_trials<'a>(fields: &mut Fields<'a>, trials: Option<&'a TrialLosses>) {
    if let Some(trials) = trials {
        fields.put("trials.examples", Value::Int(trials.examples));
        fields.put("trials.baseline", Value::Real(trials.baseline));
        fields.put("trials.losses", Value::F64s(Cow::Borrowed(&trials.losses)));
    }
}

fn get_trials(fields: &Fields<'_>) -> Result<Option<TrialLosses>> {
    let Some(losses) = fields.f64s("trials.losses")? else {
        return Ok(None);
    };
    Ok(Some(TrialLosses {
        examples: fields.int("trials.examples")?.unwrap_or_default(),
        baseline: fields.real("trials.baseline")?.unwrap_or_default(),
        losses,
    }))
}

/// What every request of a reallocation has: `[step, total_steps, reallocation]`, seed, mask and ranks.
fn asked<'a>(times: [u64; 3], seed: u64, active: &'a [bool], ranks: &[u32]) -> Fields<'a> {
    let [step, total_steps, reallocation] = times;
    let mut fields = Fields::new()
        .with("step", Value::Int(step))
        .with("total_steps", Value::Int(total_steps))
        .with("reallocation", Value::Int(reallocation))
        .with("seed", Value::Int(seed))
        .with("active", Value::Bools(Cow::Borrowed(active)));
    put_ranks(&mut fields, ranks);
    fields
}

impl TrialRequest {
    /// As the fields of `trials`.
    pub fn to_fields(&self) -> Fields<'_> {
        let times = [self.step, self.total_steps, self.reallocation];
        asked(times, self.seed, &self.active, &self.ranks)
    }

    /// From the fields of `trials`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        Ok(TrialRequest {
            step: fields.int("step")?.unwrap_or_default(),
            total_steps: fields.int("total_steps")?.unwrap_or_default(),
            reallocation: fields.int("reallocation")?.unwrap_or_default(),
            seed: fields.int("seed")?.unwrap_or_default(),
            active: fields.bools("active")?.unwrap_or_default(),
            ranks: get_ranks(fields)?,
        })
    }
}

impl Trials {
    /// As the answer to `trials`.
    pub fn to_fields(&self) -> Result<Fields<'static>> {
        let trials = serde_json::to_string(&self.trials)
            .map_err(|error| Error::from(format!("the trials cannot be written: {error}")))?;
        Ok(Fields::new()
            .with("examples", Value::Int(self.examples))
            .with("trials", Value::Json(trials.into())))
    }

    /// From the answer to `trials`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        fields.only(&["examples", "trials"])?;
        let trials = match fields.get("trials") {
            // An empty list has no kind of its own in JSON.
            Some(Value::F64s(none)) if none.is_empty() => Vec::new(),
            _ => match fields.text("trials")? {
                Some(text) => read_trials(text)?,
                None => Vec::new(),
            },
        };
        Ok(Trials {
            examples: fields.int("examples")?.unwrap_or_default(),
            trials,
        })
    }
}

/// Each trial of a list, none of whose fields may be one that is not known.
fn read_trials(text: &str) -> Result<Vec<crate::Trial>> {
    let unreadable = |error| Error::from(format!("`trials` cannot be read: {error}"));
    let values: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_str(text).map_err(unreadable)?;
    let known = ["factors", "components"];
    let mut keys = values.iter().flat_map(|trial| trial.keys());
    if let Some(strange) = keys.find(|key| !known.contains(&key.as_str())) {
        return Err(format!(
            "a trial has `{strange}`, which this version of dynalora does not know: it knows {}",
            known.join(", ")
        )
        .into());
    }
    serde_json::from_str(text).map_err(unreadable)
}

impl ScoreRequest {
    /// As the fields of `scores`.
    pub fn to_fields(&self) -> Fields<'_> {
        let times = [self.step, self.total_steps, self.reallocation];
        let mut fields = asked(times, self.seed, &self.active, &self.ranks);
        put_ledger(&mut fields, &self.ledger);
        put_trials(&mut fields, self.trials.as_ref());
        fields
    }

    /// From the fields of `scores`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        Ok(ScoreRequest {
            step: fields.int("step")?.unwrap_or_default(),
            total_steps: fields.int("total_steps")?.unwrap_or_default(),
            reallocation: fields.int("reallocation")?.unwrap_or_default(),
            seed: fields.int("seed")?.unwrap_or_default(),
            active: fields.bools("active")?.unwrap_or_default(),
            ranks: get_ranks(fields)?,
            ledger: get_ledger(fields)?,
            trials: get_trials(fields)?,
        })
    }
}

impl AllocationRequest {
    /// As the fields of `allocate`. The modules crossed when the allocator was made.
    pub fn to_fields(&self) -> Fields<'_> {
        let times = [self.step, self.total_steps, self.reallocation];
        let mut fields = asked(times, self.seed, &self.active, &self.ranks);
        fields.put("scores", Value::F64s(Cow::Borrowed(&self.scores)));
        put_ledger(&mut fields, &self.ledger);
        put_trials(&mut fields, self.trials.as_ref());
        fields
    }

    /// From the fields of `allocate`, over these modules.
    pub fn from_fields(fields: &Fields<'_>, modules: Vec<ModuleInfo>) -> Result<Self> {
        Ok(AllocationRequest {
            modules,
            scores: fields.f64s("scores")?.unwrap_or_default(),
            ledger: get_ledger(fields)?,
            active: fields.bools("active")?.unwrap_or_default(),
            ranks: get_ranks(fields)?,
            step: fields.int("step")?.unwrap_or_default(),
            total_steps: fields.int("total_steps")?.unwrap_or_default(),
            reallocation: fields.int("reallocation")?.unwrap_or_default(),
            seed: fields.int("seed")?.unwrap_or_default(),
            trials: get_trials(fields)?,
        })
    }
}

impl Allocation {
    /// The names of its fields.
    pub const FIELDS: [&'static str; 7] = [
        "active",
        "components",
        "pruning",
        "rates",
        "scales",
        "shared",
        "ask_again",
    ];

    /// As the answer to `allocate`.
    pub fn to_fields(&self) -> Fields<'_> {
        let mut fields = Fields::new().with("active", Value::Bools(Cow::Borrowed(&self.active)));
        if let Some(components) = &self.components {
            fields.put_lists("components", components, Value::Bools);
            fields.put("pruning", Value::Text(self.pruning.name().into()));
        }
        if let Some(rates) = &self.rates {
            fields.put("rates", Value::F64s(Cow::Owned(rates.concat())));
        }
        if let Some(scales) = &self.scales {
            fields.put("scales", Value::F64s(Cow::Borrowed(scales)));
        }
        if let Some(shared) = &self.shared {
            let shared = shared.iter().map(|module| *module as u64).collect();
            fields.put("shared", Value::U64s(shared));
        }
        if let Some(steps) = self.ask_again {
            fields.put("ask_again", Value::Int(steps));
        }
        fields
    }

    /// From the answer to `allocate`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        fields.only(&Allocation::FIELDS)?;
        let rates = fields
            .f64s("rates")?
            .map(|flat| match flat.as_chunks::<2>() {
                (pairs, []) => Ok(pairs.to_vec()),
                _ => Err(Error::from(
                    "`rates` is of odd length: two for each module, of A and of B",
                )),
            });
        let pruning = fields.text("pruning")?.map(|name| {
            Pruning::named(name).ok_or_else(|| {
                Error::from(format!(
                    "`pruning` is \"{name}\", which this version of dynalora does not know: it knows prune, freeze"
                ))
            })
        });
        fields.need("active")?;
        Ok(Allocation {
            active: fields.bools("active")?.unwrap_or_default(),
            components: fields.bool_lists("components")?,
            pruning: pruning.transpose()?.unwrap_or_default(),
            rates: rates.transpose()?,
            scales: fields.f64s("scales")?,
            shared: fields
                .u64s("shared")?
                .map(|modules| modules.into_iter().map(|module| module as usize).collect()),
            ask_again: fields.int("ask_again")?,
        })
    }
}

impl Needs {
    /// As the answer to `needs`.
    pub fn to_fields(&self) -> Result<Fields<'static>> {
        to_json("needs", self)
    }

    /// From the answer to `needs`. A field that this version does not know is a need that it cannot fill.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        fields.only(&["needs"])?;
        let needs: serde_json::Value = from_json("needs", fields)?;
        let mut asked = needs.as_object().into_iter().flat_map(|needs| needs.keys());
        if let Some(strange) = asked.find(|name| !Needs::FIELDS.contains(&name.as_str())) {
            return Err(format!(
                "it needs `{strange}`, which this version of dynalora does not offer: it offers {}",
                Needs::FIELDS.join(", ")
            )
            .into());
        }
        serde_json::from_value(needs)
            .map_err(|error| format!("`needs` cannot be read: {error}").into())
    }
}

impl Start {
    /// As the fields of `start`.
    pub fn to_fields(&self) -> Result<Fields<'static>> {
        to_json("start", self)
    }

    /// From the fields of `start`.
    pub fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        from_json("start", fields)
    }
}

/// A value as one field of JSON.
pub fn to_json<T: serde::Serialize>(name: &'static str, value: &T) -> Result<Fields<'static>> {
    let text = serde_json::to_string(value)
        .map_err(|error| Error::from(format!("`{name}` cannot be written as JSON: {error}")))?;
    Ok(Fields::new().with(name, Value::Json(text.into())))
}

/// A value from one field of JSON.
pub fn from_json<T: serde::de::DeserializeOwned>(name: &str, fields: &Fields<'_>) -> Result<T> {
    fields.need(name)?;
    let text = match fields.get(name) {
        // An empty list has no kind of its own in JSON.
        Some(Value::F64s(none)) if none.is_empty() => "[]",
        _ => fields.text(name)?.unwrap_or_default(),
    };
    serde_json::from_str(text).map_err(|error| format!("`{name}` cannot be read: {error}").into())
}

/// Numbers of a plugin's own, as the answer to `numbers`.
pub fn numbers_to_fields(numbers: &Numbers) -> Fields<'_> {
    let mut fields = Fields::new();
    for (name, values) in numbers {
        fields.put(name.as_str(), Value::F64s(Cow::Borrowed(values)));
    }
    fields
}

/// Numbers of a plugin's own, from the answer to `numbers`: one value, or a list of them, under each name.
pub fn numbers_from_fields(fields: &Fields<'_>) -> Result<Numbers> {
    let numbers = fields.iter().map(|(name, value)| {
        let values = match value {
            Value::Real(_) | Value::Int(_) => fields.real(name)?.into_iter().collect(),
            _ => fields.f64s(name)?.unwrap_or_default(),
        };
        Ok((name.to_owned(), values))
    });
    numbers.collect()
}
