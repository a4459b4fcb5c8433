use super::*;

fn name(text: &str) -> PathComponent {
    PathComponent::new(text.as_bytes()).unwrap()
}

fn sample() -> Tree {
    let mut inner = Directory::default();
    inner.insert(name("run"), Node::file(b"#!", true)).unwrap();
    let mut outer = Directory::default();
    outer
        .insert(name("z"), Node::Symlink(SymlinkTarget::new(b"a/b").unwrap()))
        .unwrap();
    outer
        .insert(PathComponent::new(b"\xff").unwrap(), Node::file(b"", false))
        .unwrap();
    outer.insert(name("bin"), Tree::Directory(inner).into()).unwrap();
    Tree::Directory(outer)
}

#[test]
fn bad_names_cannot_be_written_down() {
    let long = vec![b'a'; 256];
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &long] {
        assert!(PathComponent::new(bad).is_err(), "{bad:?}");
    }
    for good in [&b"..."[..], b".a", b"\xff\n", &long[..255]] {
        assert!(PathComponent::new(good).is_ok(), "{good:?}");
    }
}

#[test]
fn a_tree_comes_back_from_its_bytes() {
    for tree in [
        sample(),
        Tree::Directory(Directory::default()),
        Tree::Leaf(Leaf::Symlink(SymlinkTarget::new(b"x").unwrap())),
        Tree::Leaf(Leaf::File {
            blob: BlobDigest::of(b"x"),
            size: 1,
            executable: true,
        }),
    ] {
        assert_eq!(Tree::from_bytes(&tree.to_bytes(), tree.digest()).unwrap(), tree);
    }
}

#[test]
fn the_digest_is_the_same_for_ever() {
    assert_eq!(sample().digest().to_string(), SAMPLE_DIGEST);
}
const SAMPLE_DIGEST: &str = "82a0ef415a1decbb128fdb318b288284c6d0614d56c725c4f81e54fb8b5ef99b";

#[test]
fn what_is_asked_for_must_come() {
    let other = Tree::Directory(Directory::default()).digest();
    assert!(matches!(
        Tree::from_bytes(&sample().to_bytes(), other),
        Err(TreeError::Digest { .. })
    ));
}

/// Entries out of order, twice, or with bad names: all under the digest of exactly those bytes.
#[test]
fn no_second_encoding_of_a_directory_is_read() {
    let file = || file_to_value(BlobDigest::of(b""), 0, false);
    let directory = |names: &[&[u8]]| {
        let entries = names
            .iter()
            .map(|name| Value::Array(vec![Value::Bytes(name.to_vec()), file()]));
        Value::Array(vec![
            Value::Text("dir".to_owned()),
            Value::Array(entries.collect()),
        ])
    };
    let read = |value: Value| {
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).unwrap();
        Tree::from_bytes(&bytes, TreeDigest(*blake3::hash(&bytes).as_bytes()))
    };
    assert!(read(directory(&[b"a", b"b"])).is_ok());
    assert!(matches!(
        read(directory(&[b"b", b"a"])),
        Err(TreeError::Encoding(CborError::NotDeterministic))
    ));
    assert!(matches!(
        read(directory(&[b"a", b"a"])),
        Err(TreeError::Duplicate(_))
    ));
    assert!(matches!(read(directory(&[b".."])), Err(TreeError::Name { .. })));
    assert!(matches!(read(directory(&[b"a/b"])), Err(TreeError::Name { .. })));
    let reference = Value::Array(vec![Value::Text("dir".to_owned()), Value::Bytes(vec![0; 32])]);
    assert!(read(reference).is_err());
}

#[test]
fn digests_are_text_for_people_and_bytes_for_machines() {
    let digest = sample().digest();
    let bytes = cbor::to_vec(&digest).unwrap();
    assert_eq!((bytes.len(), bytes[0]), (34, 0x58));
    assert_eq!(cbor::from_slice::<TreeDigest>(&bytes, 100).unwrap(), digest);
    assert_eq!(digest.to_string().parse::<TreeDigest>().unwrap(), digest);
}
