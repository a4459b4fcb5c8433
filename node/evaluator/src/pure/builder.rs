//! What the readers of JSON and TOML make values with.

/// Makes values of what a text has. A type of the caller, so that its values are made once and at once.
pub trait Builder {
    /// A value.
    type Value;
    /// The name of a member.
    type Key;

    /// `null`
    fn null(&mut self) -> Self::Value;
    /// `true` and `false`
    fn boolean(&mut self, value: bool) -> Self::Value;
    /// A number without fraction and exponent that fits.
    fn integer(&mut self, value: i64) -> Self::Value;
    /// Any other number.
    fn float(&mut self, value: f64) -> Self::Value;
    /// A string: valid UTF-8 without null bytes.
    fn string(&mut self, text: &str) -> Self::Value;
    /// The name of a member: valid UTF-8 without null bytes.
    fn key(&mut self, text: &str) -> Self::Key;
    /// An array.
    fn list(&mut self, items: std::vec::Drain<'_, Self::Value>) -> Self::Value;
    /// An object or table, its members in the order of the text. Where a name is there twice, the last one counts.
    fn object(&mut self, members: std::vec::Drain<'_, (Self::Key, Self::Value)>) -> Self::Value;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Builder;

    /// Writes values in a notation of its own, so that kinds can be told apart.
    pub(crate) struct Writer;

    impl Builder for Writer {
        type Value = String;
        type Key = String;

        fn null(&mut self) -> String {
            "null".into()
        }
        fn boolean(&mut self, value: bool) -> String {
            value.to_string()
        }
        fn integer(&mut self, value: i64) -> String {
            format!("i{value}")
        }
        fn float(&mut self, value: f64) -> String {
            format!("f{value:?}")
        }
        fn string(&mut self, text: &str) -> String {
            format!("{text:?}")
        }
        fn key(&mut self, text: &str) -> String {
            text.into()
        }
        fn list(&mut self, items: std::vec::Drain<'_, String>) -> String {
            format!("[{}]", items.collect::<Vec<_>>().join(" "))
        }
        fn object(&mut self, members: std::vec::Drain<'_, (String, String)>) -> String {
            format!(
                "{{{}}}",
                members
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect::<Vec<_>>()
                    .join(" ")
            )
        }
    }
}
