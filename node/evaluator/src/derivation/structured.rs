//! Structured attributes: the JSON object in `__json`.

use std::collections::BTreeMap;

/// Attributes and their JSON texts.
#[derive(Default)]
pub(super) struct Structured(BTreeMap<Vec<u8>, Vec<u8>>);

impl Structured {
    /// Adds an attribute.
    pub(super) fn insert(&mut self, key: &[u8], json: Vec<u8>) {
        self.0.insert(key.to_vec(), json);
    }

    /// The object, keys sorted.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut text = vec![b'{'];
        for (index, (key, value)) in self.0.iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            crate::json::push_string(&mut text, key);
            text.push(b':');
            text.extend_from_slice(value);
        }
        text.push(b'}');
        text
    }
}
