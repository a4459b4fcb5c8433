use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tvix_node_protocol::build::{BuildKind, BuildOptions, Input};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind, read_derivation};
use tvix_node_swarm::underway::{Asked, Seen, Turn};

use super::*;
use crate::team::together::Heard;

const TEAM: SwarmId = SwarmId([1; 32]);

struct Shop {
    building: Arc<SharedBuilds>,
    underway: Arc<Underway>,
    /// Whether the inputs of a build count here.
    accepted: bool,
    /// Whether the same has been built when the inputs are here.
    found: bool,
    /// A build begins with one of these.
    slots: Semaphore,
    carried_out: AtomicUsize,
    /// Whether members were told of the build while it ran.
    told: Mutex<Vec<bool>>,
    steps: Mutex<Vec<String>>,
}

impl Shop {
    fn new(accepted: bool, found: bool) -> Arc<Self> {
        Arc::new(Self {
            building: Arc::default(),
            underway: Arc::default(),
            accepted,
            found,
            slots: Semaphore::new(0),
            carried_out: AtomicUsize::new(0),
            told: Mutex::default(),
            steps: Mutex::default(),
        })
    }

    /// Whether a member that wants the same is told that it is built here.
    fn tells(&self, request: &BuildRequest) -> bool {
        let asked = Asked {
            team: TEAM,
            me: NodeKey([1; 32]),
            asker: NodeKey([2; 32]),
            turn: Turn::default(),
            terms: BuildTerms {
                options: request.options,
                limits: request.limits,
            },
            owners: false,
        };
        self.underway.seen(&request.derivation, asked) == Seen::At(asked.me)
    }

    fn steps(&self) -> Vec<String> {
        self.steps.lock().unwrap().clone()
    }
}

fn record(order: &BuildRequest) -> Box<BuildRecord> {
    Box::new(BuildRecord {
        build_key: order.build_key().unwrap(),
        request: None,
        derivation: order.derivation.clone(),
        inputs: vec![],
        outputs: BTreeMap::new(),
        builder: NodeKey([1; 32]),
        started: 1,
        finished: 2,
        sandbox: String::new(),
    })
}

impl Workshop for Shop {
    type Ready = ();

    fn team(&self) -> SwarmId {
        TEAM
    }

    fn building(&self) -> &Arc<SharedBuilds> {
        &self.building
    }

    fn underway(&self) -> &Arc<Underway> {
        &self.underway
    }

    fn begin(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }

    async fn built_before(
        &self,
        request: &BuildRequest,
        _: &BTreeMap<String, StorePath>,
    ) -> Option<BuildRecord> {
        self.found.then(|| *record(request))
    }

    async fn gather(self: &Arc<Self>, _: &Order) -> Result<((), bool), Refusal> {
        self.slots.acquire().await.unwrap().forget();
        Ok(((), self.accepted))
    }

    async fn carry_out(
        self: &Arc<Self>,
        _: &Arc<SharedBuild>,
        order: &Order,
        (): (),
        accepted: bool,
    ) -> Ended {
        self.carried_out.fetch_add(1, Ordering::Relaxed);
        let told = self.tells(&order.request);
        self.told.lock().unwrap().push(told);
        Ended::Built {
            record: record(&order.request),
            accepted,
            aside: vec![],
        }
    }

    fn noted(&self, _: &Order, _: &Arc<SharedBuild>, step: Step<'_>) {
        self.steps.lock().unwrap().push(format!("{step:?}"));
    }
}

fn order() -> Arc<Order> {
    let fields = DerivationFields {
        name: "made".to_owned(),
        outputs: [("out".to_owned(), OutputKind::InputAddressed)].into(),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: b"x86_64-linux".to_vec(),
        builder: b"/bin/sh".to_vec(),
        arguments: vec![],
        environment: BTreeMap::new(),
    };
    let made = fields.instantiate(|_| None).unwrap();
    let request = BuildRequest {
        swarm: TEAM,
        requester: NodeKey([2; 32]),
        builder: NodeKey([1; 32]),
        derivation: made.drv_path.clone(),
        inputs: vec![],
        outputs: vec!["out".to_owned()],
        kind: BuildKind::Regular,
        desired_store: None,
        options: BuildOptions { cores: 0 },
        limits: BuildLimits::NONE,
        urgency: 0,
        fresh: false,
        keep_failed: false,
        nonce: [0; 16],
        issued_at: 0,
        not_after: 1,
    };
    Arc::new(Order {
        request,
        hash: RequestHash([3; 32]),
        derivation: read_derivation(&made.drv_path, &made.aterm).unwrap(),
        outputs: made.outputs,
        direct: BTreeSet::new(),
        limits: BuildLimits::NONE,
    })
}

async fn end(waiting: &Waiting) -> Arc<Ended> {
    let mut following = waiting.build.follow();
    loop {
        if let Heard::Over(ended) = following.next().await {
            return ended;
        }
    }
}

#[tokio::test]
async fn what_was_built_while_a_slot_was_waited_for_is_not_built_again() {
    let shop = Shop::new(true, true);
    shop.slots.add_permits(1);
    let waiting = join(&shop, &order()).await.unwrap();
    let ended = end(&waiting).await;
    assert!(
        matches!(&*ended, Ended::Built { accepted: true, .. }),
        "{ended:?}"
    );
    assert_eq!(shop.steps(), ["Begun", "FoundDone"]);
    assert_eq!(shop.carried_out.load(Ordering::Relaxed), 0);
    // From inputs that are its requester's word alone nothing has been built before.
    let shop = Shop::new(false, true);
    shop.slots.add_permits(1);
    let waiting = join(&shop, &order()).await.unwrap();
    end(&waiting).await;
    assert_eq!(shop.carried_out.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn two_who_want_the_same_have_one_build_unless_it_is_for_one_alone() {
    for (accepted, builds) in [(true, 1), (false, 2)] {
        let shop = Shop::new(accepted, false);
        let (one, other) = (order(), order());
        let waiting = async {
            let (one, other) = tokio::join!(join(&shop, &one), join(&shop, &other));
            let (one, other) = (one.unwrap(), other.unwrap());
            tokio::join!(end(&one), end(&other))
        };
        let slots = async { shop.slots.add_permits(2) };
        tokio::join!(biased; waiting, slots);
        assert_eq!(shop.carried_out.load(Ordering::Relaxed), builds);
        let turned_away = shop.steps().iter().any(|step| step == "TurnedAway");
        assert_eq!(turned_away, !accepted, "{:?}", shop.steps());
    }
}

#[tokio::test]
async fn members_are_told_of_a_build_unless_it_is_for_one_alone() {
    for accepted in [true, false] {
        let shop = Shop::new(accepted, false);
        shop.slots.add_permits(1);
        let order = order();
        let waiting = join(&shop, &order).await.unwrap();
        end(&waiting).await;
        assert_eq!(*shop.told.lock().unwrap(), [accepted]);
        assert!(shop.underway.is_empty(), "it is over");
    }
    let shop = Shop::new(true, false);
    shop.slots.add_permits(1);
    let mut fresh = order().request.clone();
    fresh.fresh = true;
    let fresh = Arc::new(Order {
        request: fresh,
        ..Arc::into_inner(order()).unwrap()
    });
    end(&join(&shop, &fresh).await.unwrap()).await;
    assert_eq!(*shop.told.lock().unwrap(), [false]);
}

/// Who waits for a slot sees at once that the owner's command has begun the same in one of its own.
#[tokio::test]
async fn a_request_that_waits_for_a_slot_follows_what_the_owner_begins_meanwhile() {
    let shop = Shop::new(true, false);
    let order = order();
    let key = order.key().unwrap();
    let waiting = tokio::spawn({
        let (shop, order) = (Arc::clone(&shop), Arc::clone(&order));
        async move { join(&shop, &order).await.unwrap() }
    });
    while shop.steps().is_empty() {
        tokio::task::yield_now().await;
    }
    let own = shop
        .building
        .begin_own(key, BuildLimits::NONE, Some(&tvix_node_store::Audience::Everyone));
    let crate::team::together::OwnBegin::Begun(own) = own else {
        panic!("it waits for its slot: {own:?}");
    };
    let waiting = waiting.await.unwrap();
    assert_eq!(shop.steps(), ["Begun", "FollowsOwn"]);
    own.build.line(b"hello");
    own.end(Ended::Built {
        record: record(&order.request),
        accepted: true,
        aside: vec![],
    });
    assert!(matches!(
        &*end(&waiting).await,
        Ended::Built { accepted: true, .. }
    ));
    assert_eq!(shop.carried_out.load(Ordering::Relaxed), 0);
}

/// What is other about a request.
type Change<'a> = &'a dyn Fn(&mut BuildRequest);

/// The place of a build whose requester has left is for who joins it again: for no request that does not.
#[tokio::test]
async fn what_a_request_seeks_is_what_it_joins() {
    let shop = Shop::new(true, false);
    let first = order();
    let input = Input {
        path: first.request.derivation.clone(),
        tree: tvix_node_protocol::tree::TreeDigest([1; 32]),
        nar_hash: tvix_node_protocol::path_info::NarHash([1; 32]),
        nar_size: 1,
        references: vec![],
    };
    let narrower = BuildLimits {
        time: Some(1),
        ..BuildLimits::NONE
    };
    let changes: [(bool, Change); 8] = [
        (true, &|_| ()),
        (true, &|request| request.urgency = 1),
        (true, &|request| request.outputs.clear()),
        (false, &|request| request.fresh = true),
        (false, &|request| request.keep_failed = true),
        (false, &|request| request.options.cores = 1),
        (false, &|request| request.limits = narrower),
        (false, &|request| request.inputs.push(input.clone())),
    ];
    shop.slots.add_permits(1);
    let kept = shop.building.join(TEAM, first.key(), BuildLimits::NONE).0;
    kept.build.set(Progress::Running { for_one: false });
    for (number, (joins, change)) in changes.into_iter().enumerate() {
        let mut other = order();
        change(&mut Arc::get_mut(&mut other).unwrap().request);
        shop.slots.add_permits(1);
        let waiting = join(&shop, &other).await.unwrap();
        assert_eq!(Arc::ptr_eq(&waiting.build, &kept.build), joins, "{number}");
        assert_eq!(
            sought(&other.request) == sought(&first.request),
            joins,
            "{number}"
        );
    }
}
