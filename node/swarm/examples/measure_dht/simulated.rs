//! Members without sockets: the records are real, time and network are not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tvix_node_protocol::cbor;
use tvix_node_protocol::envelope::{NodeKey, NodeSecret, seal};
use tvix_node_protocol::messages::{PresenceAnswer, PresenceCells, PresenceQuestion};
use tvix_node_protocol::presence::{PresenceHeader, PresenceKey, Region, pack};
use tvix_node_protocol::roster::{Founder, Genesis, Member, Roles};
use tvix_node_swarm::limits::{PRESENCE_CELLS_PER_PUT, PRESENCE_COPIES, PRESENCE_LIFETIME, PRESENCE_RENEWAL};
use tvix_node_swarm::presence::{Advertisement, Offer, PresenceTable};
use tvix_node_swarm::roster::{Members, Roster};

use crate::measured::{Outcome, cpu_and_memory, paths};
use crate::{FEW, MANY};

/// One member of so many has paths; see the program's head.
const EVERY: usize = 10;
/// Members in one bucket of a routing table, and found by one walk: Kademlia's k.
const BUCKET: usize = 20;
/// Questions of a walk on their way at once, as libp2p has it.
const AT_ONCE: usize = 3;
/// Look-ups of one path each.
const LOOK_UPS: usize = 1000;
/// Begin of simulated time, in seconds.
const START: u64 = 1_000_000;

/// Numbers that look random and are the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Where something lies in the space of Kademlia.
fn place(bytes: &[u8]) -> u128 {
    let mut place = [0; 16];
    place.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    u128::from_be_bytes(place)
}

/// Every member's place, and whom it knows.
struct Network {
    places: Vec<u128>,
    known: Vec<Vec<usize>>,
    seed: u64,
}

/// What a walk brought, and what it took.
struct Walk {
    closest: Vec<usize>,
    questions: usize,
    /// Of the closest one: how many had to be asked one after the other to hear of it.
    hops: usize,
    took: Duration,
}

impl Network {
    fn new(keys: &[NodeKey]) -> Self {
        let places: Vec<u128> = keys.iter().map(|key| place(&key.0)).collect();
        let mut numbers = Numbers(1);
        let known = (0..places.len())
            .map(|me| {
                let mut buckets: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
                for other in (0..places.len()).filter(|other| *other != me) {
                    let bucket = (places[me] ^ places[other]).leading_zeros();
                    buckets.entry(bucket).or_default().push(other);
                }
                let mut known = vec![];
                for mut bucket in buckets.into_values() {
                    for _ in 0..BUCKET.min(bucket.len()) {
                        known.push(bucket.swap_remove(numbers.below(bucket.len())));
                    }
                }
                known
            })
            .collect();
        Self {
            places,
            known,
            seed: 7,
        }
    }

    /// A round trip between two members: 10 to 100 ms, always the same for the same two.
    fn round_trip(&self, one: usize, other: usize) -> Duration {
        let (low, high) = (one.min(other) as u64, one.max(other) as u64);
        let number = Numbers(self.seed ^ (low << 32 | high)).next();
        Duration::from_micros(10_000 + number % 90_000)
    }

    fn closest_known(&self, member: usize, target: u128) -> Vec<usize> {
        let mut known = self.known[member].clone();
        known.push(member);
        known.sort_by_key(|other| self.places[*other] ^ target);
        known.truncate(BUCKET);
        known
    }

    /// Asks those closest to a target who is closer still, until the closest twenty have answered.
    fn walk(&self, me: usize, target: u128) -> Walk {
        // By distance: whom it is, and after how many hops it was heard of.
        let mut heard: BTreeMap<u128, (usize, usize)> = BTreeMap::new();
        let first = self
            .closest_known(me, target)
            .into_iter()
            .filter(|other| *other != me);
        heard.extend(first.map(|other| (self.places[other] ^ target, (other, 0))));
        let (mut asked, mut answered) = (BTreeSet::new(), BTreeSet::new());
        let mut under_way: BTreeSet<(Duration, usize, usize)> = BTreeSet::new();
        let (mut now, mut questions) = (Duration::ZERO, 0);
        loop {
            let next: Vec<(usize, usize)> = heard.values().take(BUCKET).copied().collect();
            for (other, hops) in next
                .iter()
                .filter(|(other, _)| !asked.contains(other))
                .copied()
                .collect::<Vec<_>>()
            {
                if under_way.len() >= AT_ONCE {
                    break;
                }
                asked.insert(other);
                questions += 1;
                under_way.insert((now + self.round_trip(me, other), other, hops));
            }
            if next.iter().all(|(other, _)| answered.contains(other)) {
                break;
            }
            let Some((time, other, hops)) = under_way.pop_first() else {
                break;
            };
            now = time;
            answered.insert(other);
            for new in self
                .closest_known(other, target)
                .into_iter()
                .filter(|new| *new != me)
            {
                heard.entry(self.places[new] ^ target).or_insert((new, hops + 1));
            }
        }
        let closest: Vec<(usize, usize)> = heard.into_values().take(BUCKET).collect();
        Walk {
            hops: closest.first().map_or(0, |(_, hops)| *hops + 1),
            closest: closest.into_iter().map(|(member, _)| member).collect(),
            questions,
            took: now,
        }
    }
}

/// What was said, by all holders together.
#[derive(Default)]
struct Said {
    messages: u64,
    bytes: u64,
    holder: Duration,
    keepers: Duration,
}

impl Said {
    fn message(&mut self, bytes: usize) {
        self.messages += 1;
        // With the length before it.
        self.bytes += bytes as u64 + 4;
    }
}

struct Team {
    secrets: Vec<NodeSecret>,
    roster: Roster,
    members: Members,
    tables: Vec<PresenceTable>,
    serial: u64,
}

impl Team {
    fn new(count: usize) -> Outcome<Self> {
        let secrets: Vec<NodeSecret> = (0..count as u64)
            .map(|number| NodeSecret::from_bytes(blake3::hash(&number.to_le_bytes()).as_bytes()))
            .collect();
        let founder = Founder {
            key: secrets[0].key(),
            name: "founder".to_owned(),
        };
        let mut roster = Roster::new(Genesis {
            name: "simulated".to_owned(),
            founders: vec![founder],
            threshold: 1,
            salt: [1; 32],
        })?;
        for (number, secret) in secrets.iter().enumerate().skip(1) {
            let member = Member {
                swarm: roster.swarm(),
                key: secret.key(),
                name: format!("node {number}"),
                roles: Roles::all(),
                issued_by: secrets[0].key(),
                serial: 0,
                issued_at: START,
                not_after: START + 24 * 3600,
                ticket: None,
            };
            roster.merge(seal(&member, &secrets[0])?)?;
        }
        let members = roster.members(START);
        let tables = (0..count).map(|_| PresenceTable::new(roster.swarm())).collect();
        Ok(Self {
            secrets,
            roster,
            members,
            tables,
            serial: 0,
        })
    }

    /// A holder tells the keepers of one region, as the node does it: signed once, said to each.
    fn tell(
        &mut self,
        holder: usize,
        own: &mut Advertisement,
        region: Region,
        keepers: &[usize],
        now: u64,
        said: &mut Said,
    ) -> Outcome<()> {
        let begun = Instant::now();
        let cells = own.cells(region);
        let mut headers = Vec::with_capacity(cells.len());
        for cell in &cells {
            self.serial += 1;
            let header = PresenceHeader {
                swarm: self.roster.swarm(),
                epoch: own.epoch(),
                holder: self.secrets[holder].key(),
                region,
                depth: cell.depth,
                cell: cell.cell,
                count: u32::try_from(cell.keys.len())?,
                root: cell.root,
                serial: self.serial,
                issued_at: now,
                not_after: now + PRESENCE_LIFETIME,
            };
            headers.push(seal(&header, &self.secrets[holder])?);
        }
        said.holder += begun.elapsed();
        for keeper in keepers {
            for (cells, headers) in cells
                .chunks(PRESENCE_CELLS_PER_PUT)
                .zip(headers.chunks(PRESENCE_CELLS_PER_PUT))
            {
                let begun = Instant::now();
                let question = PresenceQuestion::Put {
                    headers: headers.to_vec(),
                };
                let question = cbor::to_vec(&question)?;
                said.message(question.len());
                said.holder += begun.elapsed();
                let begun = Instant::now();
                let PresenceQuestion::Put { headers } = cbor::from_slice(&question, question.len())? else {
                    return Err("something else came back".into());
                };
                let (mut numbers, mut wanted) = (vec![], vec![]);
                for (number, header) in (0_u32..).zip(&headers) {
                    let sender = self.secrets[holder].key();
                    if let Offer::KeysWanted(cell) =
                        self.tables[*keeper].offer(header, sender, &self.members, own.epoch(), now)?
                    {
                        numbers.push(number);
                        wanted.push(cell);
                    }
                }
                let refused = vec![];
                let answer = PresenceAnswer::Wanted {
                    cells: numbers.clone(),
                    refused,
                };
                said.message(cbor::to_vec(&answer)?.len());
                said.keepers += begun.elapsed();
                let begun = Instant::now();
                let keys: Vec<PresenceKey> = numbers
                    .iter()
                    .flat_map(|number| cells[*number as usize].keys.clone())
                    .collect();
                said.message(cbor::to_vec(&PresenceCells { keys: pack(&keys) })?.len());
                said.holder += begun.elapsed();
                let begun = Instant::now();
                for (number, cell) in numbers.iter().zip(wanted) {
                    let keys = cells[*number as usize].keys.clone();
                    self.tables[*keeper].put(*cell, keys, &self.members, own.epoch(), now)?;
                }
                let (cells, refused) = (u32::try_from(headers.len())?, 0);
                said.message(cbor::to_vec(&PresenceAnswer::Kept { cells, refused })?.len());
                said.keepers += begun.elapsed();
            }
        }
        Ok(())
    }
}

/// The middle, the least and the most.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    format!(
        "{:.1} ({:.1} to {:.1})",
        values[values.len() / 2],
        values[0],
        values[last]
    )
}

pub fn measure(count: usize) -> Outcome<()> {
    let mut team = Team::new(count)?;
    let keys: Vec<NodeKey> = team.secrets.iter().map(NodeSecret::key).collect();
    let network = Network::new(&keys);
    let known = network.known.iter().map(Vec::len).sum::<usize>() / count;
    println!(
        "{count} members, each knows {known} others; {} regions",
        1 << Region::bits_for(count)
    );

    // Who keeps which region: the same for all who ask, but found by a walk of each.
    let mut keepers: BTreeMap<Region, Vec<usize>> = BTreeMap::new();
    let (mut hops, mut latencies, mut questions) = (vec![], vec![], vec![]);
    let bits = Region::bits_for(count);
    for prefix in 0..1_u32 << bits {
        let region = Region {
            bits,
            prefix: u16::try_from(prefix)?,
        };
        let mut walk = network.walk(prefix as usize * 31 % count, place(&region.label()));
        questions.push(walk.questions as f64);
        walk.closest.truncate(PRESENCE_COPIES);
        keepers.insert(region, walk.closest);
    }
    let walk_questions = questions.iter().sum::<f64>() / questions.len() as f64;

    let holders: Vec<usize> = (0..count).step_by(EVERY).collect();
    let (_, memory) = cpu_and_memory()?;
    let mut many = Advertisement::new(team.roster.presence_secret(), count);
    many.add(&paths(0, MANY)?);
    println!(
        "one that has {MANY} paths: {:+.1} MiB at itself",
        cpu_and_memory()?.1 - memory
    );
    let mut own: Vec<Advertisement> = vec![many];
    for number in 1..holders.len() {
        let mut few = Advertisement::new(team.roster.presence_secret(), count);
        few.add(&paths(MANY + number * FEW, FEW)?);
        own.push(few);
    }
    for (round, what) in ["told for the first time", "renewed"].into_iter().enumerate() {
        let now = START + round as u64 * PRESENCE_RENEWAL.as_secs();
        for (what, range) in [
            (format!("{MANY} paths of one, {what}"), 0..1),
            (format!("{FEW} paths of each other, {what}"), 1..holders.len()),
        ] {
            let mut said = Said::default();
            for number in range.clone() {
                for region in own[number].regions() {
                    let mut to = keepers[&region].clone();
                    to.retain(|keeper| *keeper != holders[number]);
                    team.tell(holders[number], &mut own[number], region, &to, now, &mut said)?;
                }
            }
            let each = range.len() as f64;
            println!(
                "{what}: of each {:.0} messages, {:.0} KiB, {:.0} ms CPU of the holder, {:.0} ms of its keepers together",
                said.messages as f64 / each,
                said.bytes as f64 / each / 1024.0,
                said.holder.as_secs_f64() * 1000.0 / each,
                said.keepers.as_secs_f64() * 1000.0 / each
            );
            if round == 1 && range.start == 1 {
                let renewals = 3600.0 / PRESENCE_RENEWAL.as_secs_f64();
                let regions = f64::from(1_u32 << bits);
                println!(
                    "for each member and hour, if all have {FEW}: {:.0} messages and {:.0} KiB sent and received for the \
                     renewals, {:.1} s CPU for them; {:.0} questions of walks",
                    said.messages as f64 / each * renewals,
                    said.bytes as f64 / each * renewals / 1024.0,
                    (said.holder + said.keepers).as_secs_f64() / each * renewals,
                    regions * renewals * walk_questions
                );
            }
        }
    }
    let most = team
        .tables
        .iter()
        .map(|table| table.size())
        .max_by_key(|(_, keys)| *keys);
    let (cells, kept) = most.unwrap_or_default();
    println!("kept by the one that has most: {kept} keys in {cells} cells");

    let mut one = PresenceTable::new(team.roster.swarm());
    std::mem::swap(&mut one, &mut team.tables[1]);
    let (_, memory) = cpu_and_memory()?;
    let mut said = Said::default();
    for region in own[0].regions() {
        team.tell(holders[0], &mut own[0], region, &[1], START, &mut said)?;
    }
    println!(
        "all {MANY} at one keeper: {:+.1} MiB there",
        cpu_and_memory()?.1 - memory
    );
    std::mem::swap(&mut one, &mut team.tables[1]);

    let mut numbers = Numbers(3);
    let mut found = 0;
    let secret = team.roster.presence_secret();
    for path in paths(0, MANY)?.iter().step_by(MANY / LOOK_UPS).take(LOOK_UPS) {
        let (me, key) = (numbers.below(count), secret.key(path));
        let region = Region::of(key, bits);
        let walk = network.walk(me, place(&region.label()));
        let asked = walk.closest.iter().take(PRESENCE_COPIES);
        let answers = asked.clone().filter(|keeper| {
            !team.tables[**keeper]
                .query(secret.epoch(), &[key], START + PRESENCE_RENEWAL.as_secs())
                .is_empty()
        });
        found += usize::from(answers.count() > 0);
        let last = asked
            .map(|keeper| network.round_trip(me, *keeper))
            .min()
            .unwrap_or_default();
        hops.push(walk.hops as f64);
        questions.push(walk.questions as f64);
        latencies.push((walk.took + last).as_secs_f64() * 1000.0);
    }
    println!("{LOOK_UPS} look-ups with a walk: {found} found");
    println!("  hops {}, questions {}", spread(hops), spread(questions));
    println!(
        "  milliseconds {}, where a round trip takes 10 to 100",
        spread(latencies)
    );
    println!("without one, which is so for 40 minutes after: 1 hop, one round trip");
    Ok(())
}
