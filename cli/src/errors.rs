//! Errors in front of people: what happened, and what caused it.

use std::error::Error;

/// The messages of an error and its causes, the outermost first. A cause that the message before it
/// already tells is left out.
pub fn chain(error: &dyn Error) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !messages.iter().any(|told| told.contains(&message)) {
            messages.push(message);
        }
        cause = error.source();
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl std::fmt::Display for Layer {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn causes_are_told_once() {
        let layer = |text, next| Layer(text, Some(Box::new(next)));
        let error = layer(
            "the index cannot be opened: disk full",
            layer("disk full", Layer("errno 28", None)),
        );
        assert_eq!(
            chain(&error),
            ["the index cannot be opened: disk full", "errno 28"]
        );
    }
}
