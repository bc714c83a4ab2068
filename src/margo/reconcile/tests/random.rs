//! Any order of what can happen: other wishes, devices that fall silent, refuse, go and come, jobs that end in any order,
//! deaths at any commit. In the end everything is as the newest manifest says, and so it was told. 512 sequences, or twice
//! `PROPTEST_CASES`.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::margo::api::StatusError;
use crate::margo::reconcile::record::Part;

const DEVICES: [&str; 3] = ["a", "b", "c"];
/// Components of a deployment: the point that each writes, and its value.
type Parts = BTreeMap<usize, i64>;
const POINTS: [&str; 3] = ["speed", "mode", "limit"];
/// After one deployment per device: two to any device, which want the same point, and one to a child that nobody knows.
const ANY: [usize; 2] = [3, 4];
const GHOST: usize = 5;
/// The point of those to any device.
const SHARED: &str = "shared";

#[derive(Debug, Clone)]
enum Op {
    /// The components of each deployment that is wanted from now on.
    Want(BTreeMap<usize, Parts>),
    Reachable(usize, bool),
    Present(usize, bool),
    /// Another piece of hardware stands there, as it came.
    Exchange(usize),
    Refuse(usize, Option<(bool, bool)>),
    Die(usize),
    Pass(u64),
    /// Does so many jobs, and picks them by the number.
    Work(usize, usize),
    Tell,
}

fn op() -> impl Strategy<Value = Op> {
    let parts = || proptest::collection::btree_map(0..POINTS.len(), 1..4i64, 1..=POINTS.len());
    prop_oneof![
        4 => proptest::collection::btree_map(0..=GHOST, parts(), 0..5).prop_map(Op::Want),
        2 => (0..3usize, any::<bool>()).prop_map(|(device, yes)| Op::Reachable(device, yes)),
        1 => (0..3usize, any::<bool>()).prop_map(|(device, yes)| Op::Present(device, yes)),
        1 => (0..3usize).prop_map(Op::Exchange),
        1 => (0..3usize, proptest::option::of((any::<bool>(), any::<bool>())))
            .prop_map(|(device, how)| Op::Refuse(device, how)),
        2 => (0..12usize).prop_map(Op::Die),
        2 => (1..400u64).prop_map(Op::Pass),
        5 => (1..6usize, any::<usize>()).prop_map(|(count, pick)| Op::Work(count, pick)),
        1 => Just(Op::Tell),
    ]
}

fn target(n: usize, opaque: bool) -> String {
    match n {
        _ if opaque => "gw".to_owned(),
        GHOST => "gw/ghost".to_owned(),
        n if ANY.contains(&n) => "gw/*".to_owned(),
        n => format!("gw/{}", DEVICES[n]),
    }
}

/// The works are named by what they write.
fn works(n: usize, parts: &Parts) -> Vec<String> {
    if ANY.contains(&n) {
        let value = parts.values().next().copied().unwrap_or(1);
        return vec![format!("{SHARED}@{value}")];
    }
    parts.iter().map(|(point, value)| format!("{}@{value}", POINTS[*point])).collect()
}

/// What is true outside.
#[derive(Default)]
struct World {
    wanted: BTreeMap<usize, Parts>,
    /// Of these nothing could be taken back.
    ever_gone: BTreeSet<usize>,
    hardware: [usize; 3],
}

impl Bench {
    async fn play(&mut self, op: Op, world: &mut World) {
        match op {
            Op::Want(wishes) => {
                let named: Vec<(usize, String, Vec<String>)> =
                    wishes.iter().map(|(n, parts)| (*n, target(*n, self.scope.opaque), works(*n, parts))).collect();
                let works: Vec<Vec<&str>> =
                    named.iter().map(|(_, _, works)| works.iter().map(String::as_str).collect()).collect();
                let list: Vec<(usize, &str, &[&str])> =
                    named.iter().zip(&works).map(|((n, target, _), works)| (*n, target.as_str(), &works[..])).collect();
                self.wish(&list).await;
                world.wanted = wishes;
            }
            Op::Reachable(device, yes) => {
                let at = path(&format!("gw/{}", DEVICES[device]));
                if let Some(view) = self.devices.get_mut(&at) {
                    view.reachable = yes;
                }
                self.see().await;
            }
            Op::Present(device, true) => {
                let name = DEVICES[device];
                let hardware = world.hardware[device].to_string();
                let at = path(&format!("gw/{name}"));
                self.devices.entry(at).or_insert_with(|| DeviceView { hardware, ..view(Some(name)) });
                self.see().await;
            }
            Op::Present(device, false) => {
                world.ever_gone.insert(device);
                self.devices.remove(&path(&format!("gw/{}", DEVICES[device])));
                self.see().await;
            }
            // While an order is under way the device is in service, and its hardware stays.
            Op::Exchange(device) if self.has_order(DEVICES[device]) => {}
            Op::Exchange(device) => {
                world.hardware[device] += 1;
                self.plant.points.retain(|(name, _), _| name != DEVICES[device]);
                if let Some(view) = self.devices.get_mut(&path(&format!("gw/{}", DEVICES[device]))) {
                    view.hardware = world.hardware[device].to_string();
                }
                self.see().await;
            }
            Op::Refuse(device, None) => {
                self.plant.refuse.remove(DEVICES[device]);
            }
            Op::Refuse(device, Some((unreachable, untouched))) => {
                let refusal = Refusal { unreachable, untouched, ..Refusal::new("refused", "it does not want to") };
                self.plant.refuse.insert(DEVICES[device].to_owned(), refusal);
            }
            Op::Die(commits) => self.storage.die_after(Some(commits)),
            Op::Pass(seconds) => self.wait(seconds).await,
            Op::Work(count, pick) => {
                for _ in 0..count {
                    if !self.jobs.is_empty() {
                        self.do_job(pick % self.jobs.len()).await;
                    }
                }
            }
            Op::Tell => self.tell().await,
        }
    }

    fn has_order(&self, name: &str) -> bool {
        let at = path(&format!("gw/{name}"));
        self.reconciler.placements.values().any(|p| p.path == at && p.parts.iter().any(|part| part.order.is_some()))
    }

    /// Nothing is wrong any more, and time passes.
    async fn calm(&mut self, world: &World) {
        self.plant.refuse.clear();
        self.storage.die_after(None);
        for (name, hardware) in DEVICES.iter().zip(world.hardware) {
            let hardware = hardware.to_string();
            self.devices.insert(path(&format!("gw/{name}")), DeviceView { hardware, ..view(Some(name)) });
        }
        self.see().await;
        self.settle().await;
        for _ in 0..5 {
            self.pass(4_000).await;
        }
    }

    /// What was told last of a deployment, of each device; without those that it was removed from.
    fn last_words(&self, n: usize) -> Vec<State> {
        let of = self.told.iter().filter(|status| status.deployment_id.as_str() == id(n));
        let last: BTreeMap<_, State> = of.map(|status| (status.device.clone(), status.state)).collect();
        last.into_values().filter(|state| *state != State::Removed).collect()
    }

    /// Whether a deployment has failed until it is changed: it was refused, or an update wants of a device that it has begun
    /// on what another deployment holds there.
    fn is_final(&self, n: usize) -> bool {
        let of = self.reconciler.placements.values().filter(|placement| placement.deployment.as_str() == id(n));
        let code = |code: &'static str| {
            move |part: &Part| part.error.as_ref().is_some_and(|error: &StatusError| error.code == code)
        };
        of.into_iter().any(|placement| {
            placement.parts.iter().any(code("refused"))
                || placement.begun.is_some() && placement.parts.iter().any(code("conflict"))
        })
    }

    /// What the devices hold of a point, sorted.
    fn held(&self, point: &str) -> Vec<i64> {
        let mut held: Vec<i64> = DEVICES.iter().filter_map(|name| self.plant.point(name, point)).collect();
        held.retain(|value| *value != 0);
        held.sort_unstable();
        held
    }
}

async fn check(ops: Vec<Op>, opaque: bool) -> Result<(), TestCaseError> {
    let mut bench = Bench::new().await;
    bench.scope.opaque = opaque;
    bench.reconciler = Reconciler::load(bench.scope.clone(), &bench.storage).await.unwrap();
    bench.devices.get_mut(&path("gw")).unwrap().functions = Functions::default();
    for point in POINTS.into_iter().chain([SHARED]) {
        bench.works.extend((1..4).map(|value| (format!("{point}@{value}"), recipe(&[(point, value)]))));
    }
    let mut world = World::default();
    for device in 0..DEVICES.len() {
        bench.play(Op::Exchange(device), &mut world).await;
    }
    for op in ops {
        bench.play(op, &mut world).await;
    }
    // To a child that an opaque gateway has not, nothing can be deployed.
    if opaque && world.wanted.contains_key(&GHOST) {
        world.wanted.remove(&GHOST);
        bench.play(Op::Want(world.wanted.clone()), &mut world).await;
    }
    bench.calm(&world).await;
    states_are_right(&bench, &world)?;
    values_are_right(&bench, &world)
}

fn states_are_right(bench: &Bench, world: &World) -> Result<(), TestCaseError> {
    for n in 0..=GHOST {
        let last = bench.last_words(n);
        match world.wanted.get(&n) {
            Some(_) if n == GHOST => prop_assert_eq!(bench.code(n, Some("gw/ghost")), "101"),
            Some(_) if bench.is_final(n) => prop_assert!(last.contains(&State::Failed)),
            // Once for the device, and once for the deployment itself if it was spoken of while it was on none.
            Some(_) => prop_assert!(
                matches!(last[..], [State::Installed] | [State::Installed, State::Installed]),
                "deployment {n} is {last:?}"
            ),
            None => prop_assert_eq!(last, [], "deployment {}", n),
        }
    }
    prop_assert!(bench.reconciler.outbox().first().is_none());
    Ok(())
}

fn values_are_right(bench: &Bench, world: &World) -> Result<(), TestCaseError> {
    for (n, name) in DEVICES.iter().enumerate().filter(|(n, _)| !bench.scope.opaque && !bench.is_final(*n)) {
        for (at, point) in POINTS.iter().enumerate() {
            let (holds, parts) = (bench.plant.point(name, point).unwrap_or(0), world.wanted.get(&n));
            match parts.and_then(|parts| parts.get(&at)) {
                Some(value) => prop_assert_eq!(holds, *value, "{} of {}", point, name),
                None => prop_assert!(holds == 0 || world.ever_gone.contains(&n), "{name} holds {point} {holds}"),
            }
        }
    }
    if !world.ever_gone.is_empty() || (0..GHOST).any(|n| bench.is_final(n)) {
        return Ok(());
    }
    for point in POINTS.into_iter().chain([SHARED]) {
        let all = world.wanted.iter().filter(|(n, _)| **n != GHOST).flat_map(|(n, parts)| works(*n, parts));
        let of_point = all.filter_map(|work| work.strip_prefix(point)?.strip_prefix('@')?.parse().ok());
        let mut wanted: Vec<i64> = of_point.collect();
        wanted.sort_unstable();
        prop_assert_eq!(bench.held(point), wanted, "{} is with each of them once, and nothing left behind", point);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2 * ProptestConfig::default().cases, ..ProptestConfig::default() })]
    #[test]
    fn in_any_order_of_events_everything_ends_as_the_newest_manifest_says(
        ops in proptest::collection::vec(op(), 1..60),
        opaque in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(ops, opaque))?;
    }
}
