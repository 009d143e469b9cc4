//! A plugin's state as bytes, for checkpoints.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;

/// The bytes of `state`, for [`Scorer::save`](crate::Scorer::save) and
/// [`Allocator::save`](crate::Allocator::save). Finite floats come back exactly; a float that is not
/// finite comes back as an error.
pub fn save_state<T: Serialize>(state: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|error| format!("the state cannot be saved: {error}").into())
}

/// What [`save_state`] was given; an error on bytes that are not of this type.
pub fn load_state<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        format!("the saved state is not one of this plugin's, or it is damaged: {error}").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_come_back_bit_for_bit() {
        let values = vec![
            0.1 + 0.2,
            5e-324,
            f64::MAX,
            1.0 / 3.0,
            51.248_179_410_326_1,
            -0.0,
        ];
        let back: Vec<f64> = load_state(&save_state(&values).unwrap()).unwrap();
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&values));
        assert!(load_state::<Vec<f64>>(b"[1.0").is_err());
    }
}
