//! What a module's path says: `encoder.layer.3.attention.self.query` is a query of layer 3.

/// The index of the layer that a path names.
pub fn layer(path: &str) -> Option<u64> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// What it is in its layer, `attention.self.query`; the whole path where it is in none.
pub fn role(path: &str) -> &str {
    let mut rest = path;
    while let Some((part, after)) = rest.split_once('.') {
        if part.parse::<u64>().is_ok() {
            return after;
        }
        rest = after;
    }
    path
}

/// The path from its layer's number on: `3 attention.self.query`.
pub fn short(path: &str) -> String {
    match layer(path) {
        Some(layer) if role(path) != path => format!("{layer} {}", role(path)),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_layer_and_a_role() {
        let path = "encoder.layer.3.attention.self.query";
        assert_eq!((layer(path), role(path)), (Some(3), "attention.self.query"));
        assert_eq!(short(path), "3 attention.self.query");
        assert_eq!(
            (layer("pooler.dense"), role("pooler.dense")),
            (None, "pooler.dense")
        );
        assert_eq!(short("pooler.dense"), "pooler.dense");
        // A number with nothing behind it is a layer whose name is all there is.
        assert_eq!(
            (layer("layers.7"), short("layers.7").as_str()),
            (Some(7), "layers.7")
        );
    }
}
