//! Orders cut off at every point, given again, and answered again, with a compose program of a few lines of shell.

use super::*;
use crate::margo::component::compose::Allowed;
use crate::margo::component::compose::tests::project;
use crate::margo::host::{Collector, EngineAddress};

const OWNER: &str = "deployment/web";

/// Up: the image `sick` is unhealthy, `slow` waits for the file `go`. What is asked is written down.
const SCRIPT: &str = r#"
dir=$1; shift
case "$*" in
version*) echo 2.30.0; exit;;
esac
[ -f $dir/dead ] && { echo cannot connect >&2; exit 1; }
case "$*" in
ls*) cat $dir/listed 2>/dev/null || echo '[]'; exit;;
esac
name=$2; file=$6; shift 6
echo "$1" >>$dir/calls
case "$1" in
up)
  grep -q slow $file && { echo begun >>$dir/calls; until [ -f $dir/go ]; do sleep 0.02; done; }
  cp $file $dir/runs
  printf '[{"Name":"%s","Status":"running(1)"}]' $name >$dir/listed
  grep -q sick $file && { echo "container web is unhealthy" >&2; exit 1; }
  exit 0;;
down) [ -f $dir/stuck ] && exit 1; rm -f $dir/runs $dir/listed;;
ps) echo '{"Service":"web","State":"running","Health":"","ExitCode":0}';;
esac
"#;

struct Bench {
    folder: tempfile::TempDir,
    engines: Arc<Engines>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engines = Self::engines(&folder);
        Self { folder, engines }
    }

    /// As after a start of the gateway.
    fn engines(folder: &tempfile::TempDir) -> Arc<Engines> {
        let directory = folder.path().display().to_string();
        let engine = ContainerEngine {
            command: ["/bin/sh", "-c", SCRIPT, "compose", &directory].map(str::to_owned).to_vec(),
            address: EngineAddress::Socket("/run/none.sock".into()),
            client_config: None,
            timeout: Duration::from_secs(60),
            check_every: Duration::from_secs(60),
            keep_volumes: false,
            allowed: Allowed::default(),
            collector: Collector {
                http: "http://collector".to_owned(),
                grpc: None,
                protocol: "http/protobuf".to_owned(),
                certificate: None,
            },
        };
        Engines::new(folder.path().join("compose"), BTreeMap::from([(None, engine)]))
    }

    async fn apply(&self, key: &str, image: &str) -> Result<(), Refusal> {
        self.engines.ways(None, OWNER).unwrap().apply(key, &project(OWNER, image)).await
    }

    async fn undo(&self) -> Result<(), Refusal> {
        self.engines.ways(None, OWNER).unwrap().undo(OWNER).await
    }

    fn write(&self, name: &str) {
        std::fs::write(self.folder.path().join(name), "").unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// What was asked since the last time, without questions.
    fn calls(&self) -> Vec<String> {
        let calls = self.read("calls").lines().filter(|call| *call != "ps").map(str::to_owned).collect();
        self.remove("calls");
        self.write("calls");
        calls
    }

    fn runs(&self, image: &str) -> bool {
        self.read("runs").contains(&format!("\"{image}\""))
    }

    fn journal(&self) -> Journal {
        let place = Place::new(&self.folder.path().join("compose"), None, OWNER);
        let path = self.folder.path().join("compose").join(place.name()).join("journal.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

#[tokio::test]
async fn an_order_is_done_once_and_answered_as_often_as_it_is_asked() {
    let bench = Bench::new();
    bench.apply("k1", "one").await.unwrap();
    assert_eq!((bench.calls(), bench.runs("one")), (vec!["up".to_owned()], true));
    let sick = bench.apply("k2", "sick").await.unwrap_err();
    assert!(sick.untouched && sick.message.contains("unhealthy") && bench.runs("one"), "{sick:?}");
    assert_eq!(bench.calls(), ["up", "up"], "tried, and set back");
    // Asked again, also after a restart: the same answer, and nothing is done.
    let again = Bench { engines: Bench::engines(&bench.folder), ..bench };
    assert_eq!(again.apply("k2", "sick").await.unwrap_err(), sick);
    assert_eq!(again.calls(), Vec::<String>::new());
    again.undo().await.unwrap();
    assert_eq!(again.calls(), ["down"]);
    again.undo().await.unwrap();
    assert_eq!(again.calls(), Vec::<String>::new(), "there is nothing left to take down");
}

#[tokio::test]
async fn an_order_that_was_cut_off_goes_on_where_it_was() {
    let bench = Bench::new();
    bench.write("calls");
    bench.apply("k1", "one").await.unwrap();
    // In the middle of coming up: the program ends with us, and is asked again.
    let cut = async {
        while !bench.read("calls").contains("begun") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = bench.apply("k2", "slow") => panic!("{done:?}"),
        () = cut => {}
    }
    assert_eq!(bench.journal().order.unwrap().key, "k2");
    assert!(bench.runs("one"));
    bench.write("go");
    bench.calls();
    bench.apply("k2", "slow").await.unwrap();
    assert_eq!((bench.calls(), bench.runs("slow")), (vec!["up".to_owned(), "begun".to_owned()], true));

    // In the middle of going back: it is not tried a second time.
    let failed = bench.apply("k3", "sick").await.unwrap_err();
    let mut journal = bench.journal();
    let revision = Revision::of(&project(OWNER, "sick"), &[]).name;
    journal.answered = None;
    let because = Refusal::new("compose-failed", "it was sick");
    journal.order = Some(Begun { key: "k3".to_owned(), revision: Some(revision), failed: Some(because) });
    bench.engines.ways(None, OWNER).unwrap().place.save(&journal).await.unwrap();
    bench.calls();
    let told = bench.apply("k3", "sick").await.unwrap_err();
    assert_eq!((told.code, told.untouched), (failed.code, true));
    assert!(told.message.starts_with("it was sick"), "{}", told.message);
    assert_eq!(bench.calls(), ["up", "begun"], "only what ran before");
}

#[tokio::test]
async fn what_could_not_be_taken_down_is_taken_down_by_the_removal() {
    let bench = Bench::new();
    bench.write("stuck");
    let told = bench.apply("k1", "sick").await.unwrap_err();
    assert!(!told.untouched && told.message.contains("could not be set back"), "{told:?}");
    assert!(bench.undo().await.is_err());
    bench.remove("stuck");
    bench.undo().await.unwrap();
    assert_eq!(bench.read("runs"), "");
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_waited_for_and_one_that_lost_everything_is_found_out() {
    let bench = Bench::new();
    bench.apply("k1", "one").await.unwrap();
    bench.write("dead");
    let told = bench.apply("k2", "two").await.unwrap_err();
    assert_eq!((told.code.as_str(), told.passing, told.unreachable), ("engine-unreachable", true, false));
    bench.engines.look(&None, true).await;
    assert!(bench.engines.lost(None).is_empty(), "who does not answer has lost nothing");
    bench.remove("dead");
    bench.engines.look(&None, true).await;
    assert!(bench.engines.lost(None).is_empty());
    bench.remove("listed");
    bench.engines.look(&None, true).await;
    assert_eq!(bench.engines.lost(None), [OWNER.to_owned()].into());
    bench.apply("k3", "one").await.unwrap();
    assert!(bench.engines.lost(None).is_empty());
    // What ran before and does not come up now is tried again, and not given up.
    let mut journal = bench.journal();
    journal.installed.as_mut().unwrap().revision = Revision::of(&project(OWNER, "sick"), &bench.variables()).name;
    bench.engines.ways(None, OWNER).unwrap().place.save(&journal).await.unwrap();
    let told = bench.apply("k4", "sick").await.unwrap_err();
    assert_eq!((told.code.as_str(), told.passing, told.untouched), ("compose-failed", true, false));
}

impl Bench {
    fn variables(&self) -> Vec<(&'static str, &str)> {
        self.engines.hosts[&None].collector.variables()
    }
}
