//! RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT: BERT's layers, positions that start behind the padding index,
//! and a head of two layers.

use super::bert::encoder;
use super::json::Json;
use super::{Family, Name, name};
use crate::error::Result;
use crate::model::architecture::{
    Architecture, DensePart, Embeddings, HeadFunction, HeadPart, Reads,
};

pub(super) const FAMILY: Family = Family {
    names: &[
        name("roberta", "Roberta"),
        name("xlm-roberta", "XLMRoberta"),
        name("camembert", "Camembert"),
    ],
    read,
};

fn read(json: &Json, name: Name) -> Result<Architecture> {
    // The two others' classes have BERT's number.
    let vocabulary = match name.model_type {
        "roberta" => 50_265,
        _ => 30_522,
    };
    let mut architecture = encoder(json, name, vocabulary)?;
    architecture.prefix = "roberta";
    let padding: usize = json.get(
        &["pad_token_id"],
        "a token's number: positions count from it",
        1,
    )?;
    let (first, positions) = (padding.saturating_add(1), architecture.max_length);
    if positions <= first {
        let help = format!("there is no room for a single token: positions count from {first}");
        return json.refuse("max_position_embeddings", positions, &help);
    }
    if let Embeddings::Words(words) = &mut architecture.embeddings {
        words.first_position = first;
        words.padding = json.padding(Some(1))?;
    }
    architecture.max_length = positions - first;
    architecture.head = HeadPart {
        reads: Reads::First,
        input_dropout: true,
        dense: Some(DensePart {
            name: "classifier.dense",
            pooler: false,
            bias: true,
            function: HeadFunction::Tanh,
            norm: None,
        }),
        last: "classifier.out_proj",
        bias: true,
        module: Some("classifier"),
    };
    Ok(architecture)
}
