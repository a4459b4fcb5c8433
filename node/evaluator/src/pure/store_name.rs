//! Names of store paths.

/// Longest name of a store path in bytes.
const LONGEST: usize = 211;

/// Checks a name, as `checkName` of Nix 2.34 does, with its words.
///
/// # Errors
/// What is wrong with it.
pub fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("name must not be empty".to_owned());
    }
    if name.len() > LONGEST {
        return Err(format!(
            "name '{name}' must be no longer than {LONGEST} characters"
        ));
    }
    if matches!(name, "." | "..") {
        return Err(format!("name '{name}' is not valid"));
    }
    for dots in [".", ".."] {
        if name.strip_prefix(dots).is_some_and(|rest| rest.starts_with('-')) {
            return Err(format!(
                "name '{name}' is not valid: first dash-separated component must not be '{dots}'"
            ));
        }
    }
    let wrong = name
        .chars()
        .find(|character| !character.is_ascii_alphanumeric() && !"+-._?=".contains(*character));
    match wrong {
        Some(wrong) => Err(format!("name '{name}' contains illegal character '{wrong}'")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_nix_takes() {
        for name in ["a", ".a", "..a", "a.b-c+d_e?f=g", "0", &"x".repeat(LONGEST)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for (name, why) in [
            ("", "must not be empty"),
            (".", "is not valid"),
            ("..", "is not valid"),
            (".-a", "component must not be '.'"),
            ("..-a", "component must not be '..'"),
            ("a b", "illegal character ' '"),
            ("ü", "illegal character 'ü'"),
            (&"x".repeat(LONGEST + 1), "no longer than 211"),
        ] {
            assert!(check(name).is_err_and(|error| error.contains(why)), "{name}");
        }
    }
}
