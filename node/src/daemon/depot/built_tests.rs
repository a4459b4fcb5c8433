use std::collections::BTreeSet;
use std::fs;

use tvix_node_protocol::build::{BuildKey, BuildRecord, BuiltOutput};
use tvix_node_protocol::envelope::{NodeKey, NodeSecret, seal};
use tvix_node_protocol::path_info::Origin;
use tvix_node_store::ScratchOutput;

use super::*;
use crate::team::private::PrivateBook;
use crate::team::trust::TrustBook;

struct Home {
    folder: tempfile::TempDir,
    depot: Arc<Depot>,
}

fn path(name: &str) -> StorePath {
    StorePath::from_parts([7; 20], name).unwrap()
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("home")).unwrap();
        let private = PrivateBook::open(folder.path().join("private.json")).unwrap();
        let trust =
            TrustBook::open(folder.path().join("trust.json"), NodeKey([1; 32]), Arc::default()).unwrap();
        let depot = Arc::new(Depot::new(store, Arc::new(private), Arc::new(trust)));
        Self { folder, depot }
    }

    /// What a build leaves that makes these outputs with this content.
    fn built(&self, names: &[&str], content: &str) -> (Vec<Prepared>, BuildFacts) {
        let files = names.iter().map(|name| {
            let file = self.folder.path().join(name);
            fs::write(&file, format!("{content} of {name}")).unwrap();
            file
        });
        let files: Vec<PathBuf> = files.collect();
        let outputs = names.iter().zip(&files).map(|(name, file)| ScratchOutput {
            path: path(name),
            scratch: file,
            ca: None,
            scanned: true,
        });
        let outputs: Vec<ScratchOutput<'_>> = outputs.collect();
        let (store, derivation) = (self.depot.store(), path("it.drv"));
        let prepared = store.prepare_built(&outputs, &BTreeSet::new(), &derivation, &Origin::Built);
        let prepared = prepared.unwrap();
        let described = names.iter().zip(&prepared).map(|(name, output)| {
            let info = output.info();
            let output = BuiltOutput {
                path: info.path.clone(),
                tree: info.tree,
                nar_hash: info.nar_hash,
                nar_size: info.nar_size,
                references: vec![],
            };
            ((*name).to_owned(), output)
        });
        let secret = NodeSecret::from_bytes(&[1; 32]);
        let record = BuildRecord {
            build_key: BuildKey([3; 32]),
            request: None,
            derivation: derivation.clone(),
            inputs: vec![],
            outputs: described.collect(),
            builder: secret.key(),
            started: 0,
            finished: 0,
            sandbox: String::new(),
        };
        let note = BuildNote {
            reason: "somebody wants it".to_owned(),
            started: 0,
            finished: 0,
        };
        let facts = BuildFacts {
            derivation,
            audience: Audience::Everyone,
            record: seal(&record, &secret).unwrap(),
            note,
        };
        (prepared, facts)
    }

    fn content(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.depot.physical(&path(name))).ok()
    }

    fn records(&self) -> usize {
        let store = self.depot.store();
        store.records_of(&path("out")).unwrap().len()
    }
}

#[tokio::test]
async fn a_name_keeps_its_tree_when_another_output_of_the_same_build_is_wanted() {
    let home = Home::new();
    let (outputs, facts) = home.built(&["out"], "the first");
    assert!(home.depot.register(outputs, facts).await.unwrap());
    let (outputs, facts) = home.built(&["dev", "out"], "the second");
    let complete = home.depot.register(outputs, facts).await.unwrap();
    assert!(
        !complete,
        "'out' has another tree: nobody may be told that this was built"
    );
    assert_eq!(home.content("out").as_deref(), Some("the first of out"));
    assert_eq!(home.content("dev").as_deref(), Some("the second of dev"));
    assert_eq!(home.records(), 1);
    let (outputs, facts) = home.built(&["dev", "out"], "the third");
    assert!(!home.depot.register(outputs, facts).await.unwrap());
    assert_eq!(home.content("dev").as_deref(), Some("the second of dev"));
    let (outputs, facts) = home.built(&["dev"], "the second");
    assert!(
        home.depot.register(outputs, facts).await.unwrap(),
        "it is the same"
    );
}

#[tokio::test]
async fn of_what_was_built_for_another_all_lies_aside_or_nothing() {
    let home = Home::new();
    let (outputs, facts) = home.built(&["out"], "the first");
    let aside = home
        .depot
        .register_for_another(true, outputs, facts)
        .await
        .unwrap();
    assert_eq!(aside, []);
    let (outputs, facts) = home.built(&["dev", "out"], "the second");
    let trees: BTreeSet<TreeDigest> = outputs.iter().map(|output| output.info().tree).collect();
    let aside = home
        .depot
        .register_for_another(true, outputs, facts)
        .await
        .unwrap();
    assert_eq!(aside.iter().copied().collect::<BTreeSet<_>>(), trees);
    assert_eq!(home.content("out").as_deref(), Some("the first of out"));
    assert_eq!(
        home.content("dev"),
        None,
        "nobody else may be told that it is here"
    );
    for (name, tree) in ["dev", "out"].into_iter().zip(&aside) {
        assert!(home.depot.store().physical_unaccepted(&path(name), tree).exists());
    }
    // What is only its requester's word is his alone.
    let (outputs, facts) = home.built(&["doc"], "the third");
    let aside = home
        .depot
        .register_for_another(false, outputs, facts)
        .await
        .unwrap();
    assert_eq!((aside.len(), home.content("doc")), (1, None));
}

#[tokio::test]
async fn a_build_is_needless_when_all_its_outputs_have_come() {
    let home = Home::new();
    let outputs = ["dev", "out"].map(|name| (name.to_owned(), path(name)));
    let outputs = BTreeMap::from(outputs);
    assert_eq!(home.depot.all_here(&outputs).await, None);
    let (built, facts) = home.built(&["out"], "it");
    home.depot.register(built, facts).await.unwrap();
    assert_eq!(home.depot.all_here(&outputs).await, None);
    let (built, facts) = home.built(&["dev", "out"], "it");
    home.depot.register(built, facts).await.unwrap();
    let here = home.depot.all_here(&outputs).await.expect("both are here");
    assert!(
        here.keys().eq(["dev", "out"]) && here.values().all(|size| *size > 0),
        "{here:?}"
    );
}
