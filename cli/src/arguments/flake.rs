//! Flake references, which users of newer Nix commands will type.

use std::path::Path;

/// Beginnings of flake references that are no paths.
const SCHEMES: [&str; 10] = [
    "flake:",
    "github:",
    "gitlab:",
    "sourcehut:",
    "git+",
    "hg+",
    "path:",
    "tarball+",
    "file+",
    "nixpkgs/",
];

/// What to do instead, where a file's name is really a flake reference.
pub fn flake_advice(text: &str, attributes: &[String]) -> Option<String> {
    if Path::new(text).exists() || text.starts_with('<') {
        return None;
    }
    let (reference, attribute) = match text.split_once('#') {
        Some((reference, attribute)) => (reference, Some(attribute)),
        None => (text, None),
    };
    let is_scheme = SCHEMES.iter().any(|scheme| text.starts_with(scheme));
    if attribute.is_none() && !is_scheme && text != "nixpkgs" {
        return None;
    }
    let file = match reference {
        "" | "." => ".".to_owned(),
        "nixpkgs" | "flake:nixpkgs" => "'<nixpkgs>'".to_owned(),
        _ if is_scheme => "FOLDER".to_owned(),
        folder => folder.to_owned(),
    };
    let attribute = match attribute {
        Some(attribute) if !attribute.is_empty() => {
            Some(attribute.split(['^', '@']).next().unwrap_or(attribute))
        }
        _ => None,
    };
    let attributes: String = attribute
        .into_iter()
        .chain(attributes.iter().map(String::as_str))
        .map(|attribute| format!(" -A {attribute}"))
        .collect();
    let mut advice = format!(
        "'{text}' is a flake reference, and flakes are not supported: name a file and an attribute instead, as in \
         -f {file}{attributes}"
    );
    if file == "FOLDER" {
        advice.push_str(", where FOLDER is a checkout with a default.nix");
    } else if file == "'<nixpkgs>'" {
        advice.push_str(" (with NIX_PATH=nixpkgs=/path/to/nixpkgs, or -I nixpkgs=/path/to/nixpkgs)");
    }
    Some(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(text: &str) -> Option<String> {
        flake_advice(text, &[])
    }

    #[test]
    fn flake_references_are_told_from_files() {
        for text in [
            "nixpkgs#hello",
            "nixpkgs",
            "nixpkgs/nixos-24.05",
            ".#x",
            "#x",
            "./folder#x.y",
            "/abs/folder#x",
            "github:NixOS/nixpkgs",
            "github:NixOS/nixpkgs/nixos-unstable#hello^dev",
            "git+https://example.org/repo?ref=main",
            "path:./x",
        ] {
            let advice = advice(text).expect(text);
            assert!(advice.contains(text) && advice.contains("-f "), "{advice}");
        }
        for text in [
            "default.nix",
            "./x.nix",
            "missing",
            "<nixpkgs>",
            "<a#b>",
            "https://example.org/x.tar.gz",
            ".",
        ] {
            assert_eq!(advice(text), None, "{text}");
        }
    }

    #[test]
    fn the_advice_can_be_typed() {
        assert!(
            advice("nixpkgs#hello")
                .unwrap()
                .contains("-f '<nixpkgs>' -A hello (with")
        );
        assert!(advice(".#x.y^dev").unwrap().ends_with("-f . -A x.y"));
        assert!(advice("./folder#x").unwrap().ends_with("-f ./folder -A x"));
        assert!(advice("github:o/r#x").unwrap().contains("-f FOLDER -A x, where"));
        assert!(
            flake_advice(".#", &["y".to_owned()])
                .unwrap()
                .ends_with("-f . -A y")
        );
    }

    #[test]
    fn a_file_that_is_there_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c#.nix");
        std::fs::write(&file, "1").unwrap();
        assert_eq!(advice(file.to_str().unwrap()), None);
    }
}
