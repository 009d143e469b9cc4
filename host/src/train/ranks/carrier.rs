//! A plugin that the first rank alone asks: its answers are told to the others.

use dynalora_plugin_api::abi::host::Carrier;
use dynalora_plugin_api::message::Fields;
use dynalora_plugin_api::message::json::{Answer, read_answer, write_answer};

use super::Ranks;

impl Ranks {
    /// The plugin behind `own` for all ranks.
    pub fn carried(&self, own: Box<dyn Carrier>) -> Box<dyn Carrier> {
        match self.count() {
            1 => own,
            _ => Box::new(Told {
                ranks: self.clone(),
                own,
            }),
        }
    }
}

struct Told {
    ranks: Ranks,
    /// Called on the first rank.
    own: Box<dyn Carrier>,
}

impl Carrier for Told {
    fn call(
        &mut self,
        name: &str,
        fields: &Fields<'_>,
    ) -> dynalora_plugin_api::Result<Option<Fields<'static>>> {
        let line = self.ranks.told(|| {
            Ok(write_answer(&match self.own.call(name, fields) {
                Ok(Some(fields)) => Answer::Fields(fields),
                Ok(None) => Answer::Unknown,
                Err(error) => Answer::Refused(error.to_string()),
            }))
        });
        let line = line.map_err(|error| error.to_string())?;
        match read_answer(line.trim_end())? {
            Answer::Fields(fields) => Ok(Some(fields)),
            Answer::Unknown => Ok(None),
            Answer::Refused(why) => Err(why.into()),
        }
    }
}
