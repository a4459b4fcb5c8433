//! `record`.

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::control::RecordView;

use super::path::store_path;
use super::table::{about, now};
use super::{Failure, print, print_json};
use crate::progress::{clean, count, running};

/// Prints the signed records of the builds that made a path.
pub async fn record(home: &Home, path: &str, as_json: bool) -> Result<u8, Failure> {
    let path = store_path(home, path)?;
    let records = connect_or_start(home).await?.records(path.clone()).await?;
    if as_json {
        print_json(&records)?;
        return Ok(0);
    }
    if records.is_empty() {
        return Err(Failure::Absent(format!(
            "there is no record of a build of {path}: it was not built, or nobody's record of it is here; 'tvix-node \
             why {path}' says where it came from"
        )));
    }
    let texts: Vec<String> = records.iter().map(|record| record_text(record, now())).collect();
    print(texts.join("\n").as_bytes())?;
    Ok(0)
}

fn record_text(view: &RecordView, now: u64) -> String {
    let record = &view.record;
    let signer = match &view.signer_name {
        Some(name) => format!("{} ({})", clean(name), view.signer),
        None => view.signer.to_string(),
    };
    let mut text = format!(
        "signed by    {signer}\nderivation   {}\nbuilt        {} ago, in {}\n",
        record.derivation,
        about(now.saturating_sub(record.finished)),
        running(
            record
                .finished
                .saturating_sub(record.started)
                .saturating_mul(1000)
        ),
    );
    text += match &record.request {
        Some(_) => "asked for    by another node\n",
        None => "asked for    by the node itself\n",
    };
    text += &format!(
        "inputs       {}\nsandbox      {}\nbuild key    {}\n",
        count(record.inputs.len() as u64, "path"),
        clean(&record.sandbox),
        record.build_key,
    );
    for (name, output) in &record.outputs {
        text += &format!(
            "output       {} {}\n             tree digest {}\n             NAR hash {}, NAR size {}\n",
            clean(name),
            output.path,
            output.tree,
            output.nar_hash.to_nix(),
            output.nar_size,
        );
    }
    text += if view.accepted {
        "accepted     yes: the path in this store came by this record\n"
    } else {
        "accepted     no: nothing in this store came by this record\n"
    };
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tvix_node_protocol::StorePath;
    use tvix_node_protocol::build::{BuildKey, BuildRecord, BuiltOutput};
    use tvix_node_protocol::envelope::{NodeSecret, seal};
    use tvix_node_protocol::path_info::NarHash;
    use tvix_node_protocol::tree::TreeDigest;

    use super::*;

    #[test]
    fn a_record_is_told_in_full() {
        let secret = NodeSecret::from_bytes(&[3; 32]);
        let path = |name: &str| StorePath::from_parts([0; 20], name).unwrap();
        let output = BuiltOutput {
            path: path("hello"),
            tree: TreeDigest([4; 32]),
            nar_hash: NarHash([0; 32]),
            nar_size: 120,
            references: Vec::new(),
        };
        let record = BuildRecord {
            build_key: BuildKey([5; 32]),
            request: None,
            derivation: path("hello.drv"),
            inputs: Vec::new(),
            outputs: BTreeMap::from([("out".to_owned(), output)]),
            builder: secret.key(),
            started: 1_000,
            finished: 1_067,
            sandbox: "user namespaces\n".to_owned(),
        };
        let envelope = seal(&record, &secret).unwrap();
        let zeros = "0".repeat(32);
        let expected = format!(
            "signed by    bob ({})\n\
             derivation   /nix/store/{zeros}-hello.drv\n\
             built        2 minutes ago, in 1m07s\n\
             asked for    by the node itself\n\
             inputs       0 paths\n\
             sandbox      user namespaces\n\
             build key    {}\n\
             output       out /nix/store/{zeros}-hello\n\
             \u{20}            tree digest {}\n\
             \u{20}            NAR hash sha256:{}, NAR size 120\n\
             accepted     yes: the path in this store came by this record\n",
            secret.key(),
            "05".repeat(32),
            "04".repeat(32),
            "0".repeat(52),
        );
        let view = |name: Option<&str>, accepted| {
            RecordView::of(&envelope, name.map(str::to_owned), accepted).unwrap()
        };
        assert_eq!(record_text(&view(Some("bob"), true), 1_200), expected);
        let other = record_text(&view(None, false), 1_200);
        assert!(
            other.starts_with(&format!("signed by    {}\n", secret.key())),
            "{other}"
        );
        assert!(
            other.contains("nothing in this store came by this record"),
            "{other}"
        );
    }
}
