//! Text for causal language modelling: documents of which every token is predicted, and prompts of which the response
//! is.

use rayon::prelude::*;

use super::places::Places;
use super::tokenizer::Encoder;
use super::{Encoded, Example, Label};
use crate::error::{Error, Result};

/// Tokens, and from which on they are predicted.
type Block = (Vec<u32>, u32);

/// Tokenises documents, and prompts with their responses, each closed by the token that ends a text; what is `written` has
/// all special tokens that it is to have.
///
/// A document longer than the encoder's `max_length` becomes several examples, each of which begins with the last token
/// of the one before, so that every token but a document's first is predicted once. Of a prompt with its response what
/// is longer is cut off; a prompt that leaves no room for a response is an error.
pub fn encode(
    encoder: &Encoder,
    examples: &[Example],
    places: &Places,
    written: bool,
) -> Result<Encoded> {
    if encoder.end().is_none() && !written {
        tracing::warn!("tokenizer_config.json names no eos_token: nothing tells where a text ends");
    }
    let blocks = examples
        .par_iter()
        .enumerate()
        .map(|(index, example)| {
            blocks(encoder, example, written)
                .map_err(|what| Error::user(format!("{}: {what}", places.name(index))).help(
                    "mend or remove it; model.max_length decides how many tokens of a prompt and its response are read",
                ))
        })
        .collect::<Result<Vec<_>>>()?;
    let cut = blocks.iter().filter(|(_, cut)| *cut).count();
    if cut > 0 {
        tracing::warn!(
            "{cut} of {} responses are cut off: with their prompts they are longer than model.max_length, {} tokens",
            examples.len(),
            encoder.max_length()
        );
    }
    let mut encoded = Encoded {
        offsets: vec![0],
        ..Encoded::default()
    };
    let mut documents = Vec::new();
    for (document, (blocks, _)) in blocks.into_iter().enumerate() {
        for (ids, from) in blocks {
            encoded.type_ids.extend(std::iter::repeat_n(0, ids.len()));
            encoded.ids.extend(ids);
            encoded.offsets.push(encoded.ids.len());
            encoded.labels.push(Label::Tokens(from));
            documents.push(document);
        }
    }
    encoded.places = places.select(&documents);
    Ok(encoded)
}

/// The examples that a document or a prompt becomes, and whether anything of it is cut off.
fn blocks(
    encoder: &Encoder,
    example: &Example,
    written: bool,
) -> Result<(Vec<Block>, bool), String> {
    let length = encoder.max_length();
    if length < 2 {
        return Err(format!(
            "model and tokenizer take {length} token(s) of a text: there is none to predict"
        ));
    }
    match &example.text_pair {
        None => {
            let ids = encoder.document(&example.text)?;
            if ids.len() < 2 {
                return Err(format!(
                    "the text comes to {} token(s): there is none to predict",
                    ids.len()
                ));
            }
            let blocks = (0..ids.len() - 1).step_by(length - 1);
            let blocks =
                blocks.map(|start| (ids[start..ids.len().min(start + length)].to_vec(), 1));
            Ok((blocks.collect(), false))
        }
        Some(response) => {
            let mut ids = match written {
                true => encoder.written(&example.text)?,
                false => encoder.prompt(&example.text)?,
            };
            let from = ids.len();
            if from + 1 > length {
                return Err(format!(
                    "the prompt comes to {from} tokens, which leaves no room for a response within {length}"
                ));
            }
            if from == 0 {
                return Err(
                    "the prompt comes to no tokens: nothing stands before the response".to_owned(),
                );
            }
            ids.extend(match written {
                true => encoder.written(response)?,
                false => encoder.response(response)?,
            });
            if ids.len() == from {
                return Err("the response comes to no tokens".to_owned());
            }
            let cut = ids.len() > length;
            ids.truncate(length);
            Ok((vec![(ids, from as u32)], cut))
        }
    }
}
