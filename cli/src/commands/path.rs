//! Store paths, as users name them.

use std::path::{Component, Path};

use tvix_node::home::Home;
use tvix_node_protocol::StorePath;

use super::Failure;
use crate::arguments::UsageError;

/// Reads what a user calls a store path: with or without `/nix/store/`, with something behind it, or as
/// a link or physical path into the home's store (`./result`).
///
/// # Errors
/// What is none of these.
pub fn store_path(home: &Home, text: &str) -> Result<StorePath, Failure> {
    let inside = text.strip_prefix("/nix/store/").unwrap_or(text);
    let first = inside.split('/').next().unwrap_or(inside);
    if let Ok(path) = StorePath::from_basename(first.as_bytes()) {
        return Ok(path);
    }
    if !text.starts_with("/nix/store/")
        && let Some(path) = physical(home, Path::new(text))
    {
        return Ok(path);
    }
    Err(UsageError::new(format!(
        "'{text}' is neither a store path (/nix/store/HASH-NAME) nor a link to one in the store of this home, '{}'",
        home.store_folder().display()
    ))
    .into())
}

/// The same for several.
pub fn store_paths(home: &Home, texts: &[String]) -> Result<Vec<StorePath>, Failure> {
    texts.iter().map(|text| store_path(home, text)).collect()
}

/// The store path that a place in the file system belongs to, links followed.
fn physical(home: &Home, place: &Path) -> Option<StorePath> {
    let place = std::fs::canonicalize(place).ok()?;
    let store = std::fs::canonicalize(home.store_folder()).ok()?;
    match place.strip_prefix(store).ok()?.components().next()? {
        Component::Normal(name) => StorePath::from_basename(name.as_encoded_bytes()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "63sb9rkl0xr649vyriibhav510k5nq6d-hello-2.10";

    #[test]
    fn a_path_may_be_named_in_many_ways() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().to_owned()).unwrap();
        let tree = home.store_folder().join(NAME);
        std::fs::create_dir_all(tree.join("bin")).unwrap();
        let link = folder.path().join("result");
        std::os::unix::fs::symlink(&tree, &link).unwrap();
        let link = link.to_str().unwrap();
        for text in [
            NAME,
            &format!("/nix/store/{NAME}"),
            &format!("/nix/store/{NAME}/bin/hello"),
            link,
            &format!("{link}/bin"),
            tree.to_str().unwrap(),
        ] {
            assert_eq!(store_path(&home, text).unwrap().to_basename(), NAME, "{text}");
        }
        let outside = folder.path().to_str().unwrap();
        for text in ["hello", "/nix/store/hello", "/nix/store", "", outside] {
            let failure = store_path(&home, text).unwrap_err();
            assert_eq!(failure.exit_status(), 2, "{text}: {failure}");
        }
    }
}
