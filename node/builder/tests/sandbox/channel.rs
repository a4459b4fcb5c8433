//! `builtin:unpack-channel`.

use std::io::Write;
use std::path::PathBuf;

use tvix_node_builder::{BuildInput, Cause, StorePath};
use tvix_node_protocol::nix::derivation::DerivationFields;

use crate::stage::{Played, Stage, fields, spec};

/// A tar archive, with the modes that folders and files have.
fn archive(entries: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        // As written: the library refuses what leads out.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_entry_type(match content {
            Some(_) => tar::EntryType::Regular,
            None => tar::EntryType::Directory,
        });
        if content.is_none() {
            header.set_mode(0o755);
        }
        let content = content.unwrap_or_default();
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content.as_bytes()).expect("memory");
    }
    archive.into_inner().expect("memory")
}

fn source() -> StorePath {
    StorePath::from_parts([3; 20], "channel.tar").expect("a valid name")
}

fn asked() -> DerivationFields {
    let mut asked = fields(&[]);
    asked.builder = b"builtin:unpack-channel".to_vec();
    asked.system = b"builtin".to_vec();
    for (name, value) in [
        ("channelName", "nixpkgs".to_owned()),
        ("src", source().to_string()),
    ] {
        asked.environment.insert(name.into(), value.into());
    }
    asked
}

async fn unpack(stage: &Stage, archive: &[u8]) -> Played {
    let physical: PathBuf = stage.folder.path().join("archive");
    std::fs::write(&physical, archive).expect("a file");
    let path = source();
    let mut asked = spec(asked());
    asked.inputs.push(BuildInput { path, physical });
    stage.play(asked).await
}

#[tokio::test]
async fn a_channel_is_unpacked_whatever_its_compression() {
    let Some(stage) = Stage::new().await else { return };
    let plain = archive(&[
        ("nixos-1.2", None),
        ("nixos-1.2/default.nix", Some("{ }")),
        ("nixos-1.2/lib/deep.nix", Some("1")),
    ]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(&plain).unwrap();
    let xz = xz.finish().unwrap();
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let zstd = ruzstd::encoding::compress_to_vec(plain.as_slice(), level);
    for packed in [
        &plain,
        &gzip.finish().unwrap(),
        &bzip2.finish().unwrap(),
        &xz,
        &zstd,
    ] {
        let built = unpack(&stage, packed).await.built();
        let top = &built.outputs["out"];
        let names: Vec<_> = std::fs::read_dir(top)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["nixpkgs"]);
        for (path, content) in [("default.nix", "{ }"), ("lib/deep.nix", "1")] {
            let file = top.join("nixpkgs").join(path);
            assert_eq!(std::fs::read_to_string(file).unwrap(), content);
        }
        built.discard().await;
    }
    assert!(stage.leftovers().is_empty());
}

#[tokio::test]
async fn what_is_no_channel_is_said() {
    let Some(stage) = Stage::new().await else { return };
    let cut = archive(&[("a/file", Some(&"x".repeat(2000)))]);
    for (archive, message) in [
        (
            archive(&[("a/file", Some("")), ("b", None)]),
            "contains 2 files at its top",
        ),
        (archive(&[]), "contains 0 files at its top"),
        (b"\xfd7zXZ\0and no more".to_vec(), "XZ stream header"),
        (cut[..1200].to_vec(), "failed to write entire file"),
    ] {
        let played = unpack(&stage, &archive).await;
        let said = played.log.iter().any(|line| line.contains(message));
        assert!(said, "{message}: {:?}", played.log);
        assert!(matches!(played.cause(), Cause::Exit(1)));
    }
    assert!(stage.leftovers().is_empty());
}

/// It is unpacked where it can do no harm, and what would be left out is an error.
#[tokio::test]
async fn an_archive_does_not_lead_out_of_the_output() {
    let Some(stage) = Stage::new().await else { return };
    let outside = stage.folder.path().join("outside");
    let name = outside.to_string_lossy().into_owned();
    for path in ["../escaped", &name, "/nix/store/escaped"] {
        let entries = [("channel/file", Some("x")), (path, Some("x"))];
        let played = unpack(&stage, &archive(&entries)).await;
        let said = played
            .log
            .iter()
            .any(|line| line.contains("leads out of it") || line.contains("contains 2 files at its top"));
        assert!(said, "{path}: {:?}", played.log);
        assert!(matches!(played.cause(), Cause::Exit(1)));
        assert!(!outside.exists());
    }
    assert!(stage.leftovers().is_empty());
}

#[tokio::test]
async fn a_channel_without_a_name_is_refused() {
    let Some(stage) = Stage::new().await else { return };
    for name in ["", "..", "a/b"] {
        let mut asked = asked();
        asked.environment.insert(b"channelName".to_vec(), name.into());
        let cause = stage.play(spec(asked)).await.cause();
        assert!(matches!(&cause, Cause::Refused(_)), "{cause}");
        assert!(cause.to_string().contains("channelName"), "{cause}");
    }
    let mut asked = asked();
    asked.environment.remove(b"src".as_slice());
    let cause = stage.play(spec(asked)).await.cause().to_string();
    assert!(cause.contains("'src'"), "{cause}");
}
