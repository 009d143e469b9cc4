//! What one module trains, tensor by tensor.

/// The tensors that a module trains, or something of each: names, shapes, gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensors<T> {
    /// What every method has. LoRA: `A [rank, in]`, `B [out, rank]`. VeRA: `λ_d [rank, 1]`, `λ_b [out, 1]`.
    pub pair: [T; 2],
    /// DoRA's m, `[out, 1]`.
    pub magnitude: Option<T>,
    /// The layer's bias where it trains, `[out, 1]`.
    pub bias: Option<T>,
}

impl<T> Tensors<T> {
    /// A pair alone.
    pub fn new(pair: [T; 2]) -> Self {
        Tensors {
            pair,
            magnitude: None,
            bias: None,
        }
    }

    /// In the order of files, of raw values and of the optimiser's state.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pair.iter().chain(&self.magnitude).chain(&self.bias)
    }

    /// The same, to be written to.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let more = self.magnitude.iter_mut().chain(&mut self.bias);
        self.pair.iter_mut().chain(more)
    }

    /// Something of each.
    pub fn map<U>(self, mut of: impl FnMut(T) -> U) -> Tensors<U> {
        Tensors {
            pair: self.pair.map(&mut of),
            magnitude: self.magnitude.map(&mut of),
            bias: self.bias.map(of),
        }
    }

    /// References to them.
    pub fn each_ref(&self) -> Tensors<&T> {
        Tensors {
            pair: self.pair.each_ref(),
            magnitude: self.magnitude.as_ref(),
            bias: self.bias.as_ref(),
        }
    }

    /// The same with those of another in the same places.
    pub fn zip<U>(self, other: Tensors<U>) -> Tensors<(T, U)> {
        let ([a, b], [other_a, other_b]) = (self.pair, other.pair);
        Tensors {
            pair: [(a, other_a), (b, other_b)],
            magnitude: self.magnitude.zip(other.magnitude),
            bias: self.bias.zip(other.bias),
        }
    }
}

impl<T> Tensors<Option<T>> {
    /// All of them, or none where one is missing.
    pub fn all(self) -> Option<Tensors<T>> {
        let [a, b] = self.pair;
        Some(Tensors {
            pair: [a?, b?],
            magnitude: match self.magnitude {
                Some(magnitude) => Some(magnitude?),
                None => None,
            },
            bias: match self.bias {
                Some(bias) => Some(bias?),
                None => None,
            },
        })
    }
}

impl<T> IntoIterator for Tensors<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<
        std::iter::Chain<std::array::IntoIter<T, 2>, std::option::IntoIter<T>>,
        std::option::IntoIter<T>,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.pair.into_iter().chain(self.magnitude).chain(self.bias)
    }
}
