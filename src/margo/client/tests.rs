//! The loop against a fleet manager of a page of script, in time that passes by itself: what is sent when, and what is not.

mod bench;

use std::time::Duration;

use serde_json::json;

use super::Leaving;
use super::leave::Wish;
use crate::margo::api::{Method, Response};
use crate::margo::desired::ExchangeError;
use crate::margo::polling::Window;
use bench::{Bench, NAME, refusal};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn the_parent_is_reported_first_children_leave_first_and_a_steady_poll_is_one_request() {
    let mut bench = Bench::new(&["a", "b"]);
    bench.start().await;
    bench.wfm.hears("GET deployments", 2).await;
    let reports = ["PUT capabilities/gw", "PUT capabilities/gw/a", "PUT capabilities/gw/b"];
    assert_eq!(bench.wfm.said()[..3], reports);
    let polls = bench.passes(HOUR).await;
    assert!((118..=120).contains(&polls), "one poll every half minute and nothing else: {polls}");
    bench.yard.has(&["a"]);
    bench.wfm.hears("DELETE capabilities/gw/b", 1).await;
    bench.wish(Some(Wish::WhenEmpty));
    bench.wfm.hears("DELETE", 3).await;
    let said = bench.wfm.said();
    let left: Vec<&String> = said.iter().filter(|what| what.starts_with("DELETE")).collect();
    assert_eq!(left[1..], ["DELETE capabilities/gw/a", "DELETE capabilities/gw"]);
    assert!(bench.passes(HOUR).await <= 1, "nothing is sent by a client that left");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_refused_is_told_with_its_fields_and_not_sent_again_until_it_changes() {
    for (status, kind) in [(400, "invalid-request"), (422, "semantic-error")] {
        let mut bench = Bench::new(&["a"]);
        let body = json!({ "type": format!("https://margo.org/docs/errors/{kind}"),
            "errors": [{ "field": "labels", "message": "not this" }] });
        bench.wfm.is_in(move |request| request.url.ends_with("gw/a").then(|| refusal(status, &body))?);
        bench.start().await;
        bench.passes(HOUR).await;
        assert_eq!(bench.wfm.asked("PUT capabilities/gw/a").len(), 1);
        let alert = bench.yard.alerts.lock().unwrap()[0].clone();
        assert!(alert.code == "margo-report-refused" && alert.text.contains("labels: not this"), "{alert:?}");
        bench.yard.children.lock().unwrap()[0].identity.serial = Some("4711".to_owned());
        bench.yard.changed.notify_one();
        bench.wfm.hears("PUT capabilities/gw/a", 2).await;
        bench.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_before_its_gateway_is_answered_by_404_and_the_gateway_is_reported_again() {
    let mut bench = Bench::new(&["a"]);
    let mut once = true;
    bench.wfm.is_in(move |request| {
        let body = json!({ "type": "https://docs.margo.org/specification/problems/gateway-not-found" });
        (request.url.ends_with("gw/a") && std::mem::take(&mut once)).then(|| refusal(404, &body))?
    });
    bench.start().await;
    bench.wfm.hears("PUT capabilities/gw/a", 2).await;
    let reports: Vec<String> = bench.wfm.said().into_iter().filter(|what| what.starts_with("PUT")).collect();
    let wanted = ["capabilities/gw", "capabilities/gw/a", "capabilities/gw", "capabilities/gw/a"];
    assert_eq!(reports, wanted.map(|path| format!("PUT {path}")));
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_the_fleet_manager_does_not_know_counts_as_taken_back() {
    let mut bench = Bench::new(&["a"]);
    bench.start().await;
    bench.wfm.hears("GET deployments", 1).await;
    let body = json!({ "type": "https://docs.margo.org/specification/problem-types#device-not-found" });
    bench.wfm.is_in(move |request| (request.method == Method::Delete).then(|| refusal(404, &body))?);
    bench.yard.has(&[]);
    bench.wfm.hears("DELETE capabilities/gw/a", 1).await;
    bench.passes(HOUR).await;
    assert_eq!(bench.wfm.asked("DELETE").len(), 1);
    assert!(bench.yard.codes().is_empty());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_403_to_any_call_stops_all_requests_and_raises_an_alarm() {
    for method in [Method::Put, Method::Delete, Method::Get, Method::Post] {
        let mut bench = Bench::new(&["a", "b"]);
        bench.wfm.want(2, "gw/nobody");
        bench.wfm.is_in(move |request| (request.method == method).then(|| refusal(403, &json!({})))?);
        bench.start().await;
        if method == Method::Delete {
            bench.wfm.hears("GET deployments", 1).await;
            bench.yard.has(&["a"]);
        }
        bench.wfm.hears(method.as_str(), 1).await;
        bench.passes(Duration::from_secs(1)).await;
        assert_eq!(bench.passes(24 * HOUR).await, 0, "{method:?}");
        assert_eq!(bench.yard.codes(), [("margo-retired", true)], "{method:?}");
        bench.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_poll_is_told_and_goes_on_at_the_polling_rate() {
    let mut bench = Bench::new(&[]);
    bench.wfm.is_in(|request| request.url.ends_with("deployments").then(|| refusal(406, &json!({})))?);
    bench.start().await;
    bench.wfm.hears("GET deployments", 1).await;
    assert!((118..=120).contains(&bench.passes(HOUR).await));
    assert_eq!(bench.yard.codes(), [("margo-manifest-refused", false)], "once");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_raises_a_security_event() {
    let mut bench = Bench::new(&[]);
    bench.wfm.want(7, "gw/nobody");
    bench.start().await;
    bench.wfm.hears("POST", 1).await;
    bench.wfm.want(6, "gw/nobody");
    bench.wfm.hears("GET deployments", 9).await;
    assert_eq!(bench.yard.codes(), [("margo-manifest-security", true)]);
    assert_eq!(bench.status.borrow().manifest_version, 7);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_in_known_downtime_and_no_error_of_it_is_told() {
    let mut bench = Bench::new(&["a"]);
    bench.polling.downtime = vec![Window::parse("01:00-03:00").unwrap()];
    bench.start().await;
    bench.wfm.hears("GET deployments", 3).await;
    // Down from a minute before the window until it ends.
    let minute = Duration::from_secs(60);
    tokio::time::sleep_until(bench.wfm.began + HOUR - minute).await;
    bench.wfm.is_in(|_| Some(Err(ExchangeError::NoConnection("refused".to_owned()))));
    tokio::time::sleep_until(bench.wfm.began + HOUR + minute).await;
    bench.wfm.is_in(|_| None);
    let before = bench.status.borrow().clone();
    assert_eq!(bench.passes(HOUR + 58 * minute).await, 0, "no retries in the window");
    assert_eq!(*bench.status.borrow(), before, "and nothing is told of it");
    bench.wfm.is_in(|_| None);
    assert!(bench.passes(2 * minute).await > 0, "it goes on behind it");
    assert!(bench.yard.codes().is_empty());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn outside_of_the_polling_hours_nothing_is_polled_and_reports_are_sent() {
    let mut bench = Bench::new(&["a"]);
    bench.polling.hours = vec![Window::parse("06:00-07:00").unwrap()];
    bench.start().await;
    bench.wfm.hears("PUT capabilities/gw/a", 1).await;
    tokio::time::sleep_until(bench.wfm.began + 12 * HOUR).await;
    let polls = bench.wfm.asked("GET deployments");
    assert!(polls.iter().all(|at| (6 * HOUR..7 * HOUR).contains(at)) && polls.len() >= 119, "{}", polls.len());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_earlier_than_retry_after_allows() {
    let mut bench = Bench::new(&["a"]);
    let mut left = 3;
    bench.wfm.is_in(move |_| {
        left -= 1;
        let busy = Response { status: 503, retry_after: Some(Duration::from_secs(400)), ..Response::default() };
        (left >= 0).then_some(Ok(busy))
    });
    bench.start().await;
    bench.wfm.hears("", 4).await;
    let asked = bench.wfm.asked("");
    assert!(asked.windows(2).take(3).all(|two| two[1] - two[0] >= Duration::from_secs(400)), "{asked:?}");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn answers_429_500_and_503_and_silence_are_retried_and_soon_over_when_the_outage_is() {
    for status in [0, 429, 500, 503] {
        let mut bench = Bench::new(&[]);
        bench.start().await;
        bench.wfm.hears("GET deployments", 1).await;
        bench.wfm.is_in(move |_| match status {
            0 => Some(Err(ExchangeError::Unreachable("silence".to_owned()))),
            status => refusal(status, &json!({})),
        });
        let asked = bench.passes(12 * HOUR).await;
        assert!((12 * 60..12 * 240).contains(&asked), "{status}: {asked} requests in twelve hours");
        bench.wfm.is_in(|_| None);
        assert!(!bench.status.borrow().connected);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert!(bench.status.borrow().connected, "{status}: within the minute");
        bench.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_that_is_refused_is_given_up_and_one_that_is_not_heard_is_sent_again() {
    for (answer, times) in [
        (refusal(400, &json!({})), 1),
        (refusal(422, &json!({ "type": "x#semantic-error" })), 1),
        (refusal(404, &json!({ "type": "x#deployment-not-found" })), 1),
        (Some(Err(ExchangeError::Unreachable("lost".to_owned()))), 2),
        (refusal(500, &json!({})), 2),
    ] {
        let mut bench = Bench::new(&[]);
        bench.wfm.want(2, "gw/nobody");
        let mut first = true;
        let said = answer.clone();
        bench.wfm.is_in(move |request| {
            (request.method == Method::Post && std::mem::take(&mut first)).then(|| said.clone())?
        });
        bench.start().await;
        bench.wfm.hears("POST", times).await;
        bench.passes(HOUR).await;
        assert_eq!(bench.wfm.asked("POST").len(), times, "{answer:?}");
        assert_eq!(bench.status.borrow().statuses_waiting, 0);
        assert_eq!(bench.yard.codes().len(), 2 - times, "{answer:?}");
        bench.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_report_had_an_effect_unheard_is_taken_back_by_leaving() {
    let mut bench = Bench::new(&["a"]);
    let wfm = bench.wfm.clone();
    // Every report is taken, and no answer to a child's arrives.
    bench.wfm.is_in(move |request| {
        (request.method == Method::Put && request.url.ends_with("gw/a")).then(|| {
            wfm.take(Method::Put, "capabilities/gw/a");
            Err(ExchangeError::Unreachable("the answer was lost".to_owned()))
        })
    });
    bench.start().await;
    bench.wfm.hears("PUT capabilities/gw/a", 2).await;
    // Not even the next life of the program has heard one.
    bench.stop().await;
    bench.start().await;
    bench.wish(Some(Wish::AtOnce));
    bench.wfm.hears("DELETE capabilities/gw", 2).await;
    bench.passes(Duration::from_secs(10)).await;
    assert_eq!(*bench.wfm.devices.lock().unwrap(), Vec::<String>::new());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reached_its_fleet_manager_has_left_at_once() {
    let mut bench = Bench::new(&["a"]);
    bench.wfm.is_in(|_| Some(Err(ExchangeError::NotReady("there is no SVID".to_owned()))));
    bench.start().await;
    bench.wfm.hears("PUT", 3).await;
    bench.wish(Some(Wish::WhenEmpty));
    let left = async { bench.status.wait_for(|status| status.leaving == Leaving::Left).await.map(drop) };
    tokio::time::timeout(HOUR, left).await.unwrap().unwrap();
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_client_id_reports_the_whole_tree_anew() {
    let mut bench = Bench::new(&["a"]);
    bench.start().await;
    bench.wfm.hears("GET deployments", 2).await;
    assert_eq!(bench.wfm.asked("PUT").len(), 2);
    bench.name.send_replace(NAME.to_owned());
    bench.wfm.hears("GET deployments", 4).await;
    assert_eq!(bench.wfm.asked("PUT").len(), 2, "a renewed SVID of the same name changes nothing");
    bench.name.send_replace(format!("{NAME}-b"));
    bench.wfm.hears("PUT", 4).await;
    assert_eq!(bench.wfm.said().last().unwrap(), "PUT capabilities/gw/a");
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_stops_is_not_kept_waiting_and_takes_nothing_back() {
    let mut bench = Bench::new(&["a"]);
    bench.start().await;
    bench.wfm.hears("GET deployments", 1).await;
    *bench.yard.stopped.lock().unwrap() = true;
    bench.yard.changed.notify_one();
    bench.wfm.hears("GET deployments", 3).await;
    assert!(bench.wfm.asked("DELETE").is_empty());
    bench.stop().await;
}
