//! Golden values of PyTorch, Transformers and PEFT, as `oracle/README.md` describes them.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;

/// A safetensors file of golden values.
pub struct Golden(Vec<u8>);

impl Golden {
    /// Reads a file.
    pub fn open(path: &Path) -> Self {
        Golden(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a golden file is whole")
    }

    /// Names of all tensors, in order: the library gives them in another one every time.
    pub fn names(&self) -> Vec<String> {
        let tensors = self.tensors();
        let mut names: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The f32 values of a tensor.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let view = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        view.data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let tensors = self.tensors();
        let view = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        view.data().to_vec()
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        let tensors = self.tensors();
        let view = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        view.shape().to_vec()
    }

    /// The i32 values of a tensor.
    pub fn integers(&self, name: &str) -> Vec<u32> {
        let tensors = self.tensors();
        let view = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        view.data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect()
    }
}

/// `training.json`.
#[derive(Debug, Deserialize)]
pub struct Training {
    /// Hyperparameters.
    pub config: serde_json::Value,
    /// What each of the 64 sentences is trained towards.
    pub targets: Vec<f64>,
    /// Sentence indices of each step.
    pub batches: Vec<Vec<usize>>,
    /// Module paths in forward order.
    pub modules: Vec<String>,
    /// The runs by name.
    pub runs: BTreeMap<String, Run>,
}

/// One run of `training.json`.
#[derive(Debug, Deserialize)]
pub struct Run {
    /// Loss of each step.
    pub losses: Vec<f64>,
    /// Norm of all gradients at each step, before clipping.
    pub gradient_norms: Vec<f64>,
    /// Layers whose modules were active at each step; empty where all were.
    #[serde(default)]
    pub active_layers: Vec<Vec<u32>>,
    /// Norm of every trainable tensor after the last step.
    pub final_l2: BTreeMap<String, f64>,
    /// Signals of the first steps.
    #[serde(default)]
    pub signals: Vec<Signals>,
    /// Losses of two micro-batches.
    pub accumulated: Option<Accumulated>,
}

/// Two micro-batches of one step.
#[derive(Debug, Deserialize)]
pub struct Accumulated {
    /// Loss of each.
    pub losses: Vec<f64>,
}

/// Signals of one step, one value per module.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Signals {
    pub step: u64,
    pub tokens: u64,
    pub activation_l1: Vec<f64>,
    pub activation_l2: Vec<f64>,
    pub delta_l2: Vec<f64>,
    pub gradient_l1: Vec<f64>,
    pub gradient_l2: Vec<f64>,
    pub weight_l2: Vec<f64>,
}

impl Training {
    /// Reads `training.json` in `folder`.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("training.json");
        let text = std::fs::read_to_string(&path).expect("a golden file is there");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}
