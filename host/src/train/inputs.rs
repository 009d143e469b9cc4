//! What a run is about to read, digested, and what trains it: for its provenance.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::Prepared;
use crate::data;
use crate::error::Result;
use crate::run::{Input, Machine, Program, Sitting, weights_input};

/// Files beside `tokenizer.json` that may change what a text becomes.
const BESIDE: [&str; 4] = [
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

impl Prepared {
    /// Program, machine and every input with its digest.
    pub fn sitting(&self, device: &str, ranks: usize) -> Result<Sitting> {
        let folder = &self.rest.folder;
        let mut files: Vec<(String, PathBuf)> = data::files(&self.recipe.data)?;
        files.push(("model.config".to_owned(), folder.config.clone()));
        for (nth, path) in folder.weights.iter().enumerate() {
            files.push((weights_input(nth), path.clone()));
        }
        if self.recipe.data.is_images() {
            files.push(("preprocessor".to_owned(), folder.preprocessor.clone()));
        } else {
            files.push(("tokenizer".to_owned(), folder.tokenizer.clone()));
            let beside = BESIDE.iter().map(|name| (name, folder.dir.join(name)));
            let beside = beside.filter(|(_, path)| path.is_file());
            files.extend(beside.map(|(name, path)| (format!("tokenizer.{name}"), path)));
        }
        if let Some(given) = &self.rest.given {
            for (name, path) in ["config", "weights"].into_iter().zip(given.files()) {
                files.push((format!("adapter.from.{name}"), path));
            }
        }
        for plugin in &self.rest.plugins {
            files.push((plugin.manifest.kind.to_string(), plugin.path.clone()));
        }
        let inputs = files
            .into_par_iter()
            .map(|(name, path)| Ok((name, Input::of(&path)?)));
        let mut inputs = inputs.collect::<Result<BTreeMap<String, Input>>>()?;
        for plugin in &self.rest.plugins {
            if let Some(input) = inputs.get_mut(&plugin.manifest.kind.to_string()) {
                let manifest = &plugin.manifest;
                input.plugin = Some(format!("{} {}", manifest.name, manifest.version));
            }
        }
        Ok(Sitting {
            from_step: 0,
            started: 0,
            program: Program::current(),
            machine: Machine::current(),
            threads: rayon::current_num_threads(),
            device: device.to_owned(),
            ranks,
            inputs,
            accepted: Vec::new(),
        })
    }
}
