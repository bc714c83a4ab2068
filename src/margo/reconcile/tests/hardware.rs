//! Another piece of hardware stands where a device was.

use super::*;

/// The device is exchanged: what it holds, and who it is.
async fn exchange(bench: &mut Bench, name: &str, serial: &str, speed: i64) {
    bench.plant.points.insert((name.to_owned(), "speed".to_owned()), json!(speed));
    bench.set(&format!("gw/{name}"), |view| serial.clone_into(&mut view.hardware)).await;
}

fn applied(bench: &Bench, name: &str) -> usize {
    bench.plant.done.iter().filter(|(device, kind)| device == name && kind == "apply").count()
}

#[tokio::test]
async fn what_was_written_to_replaced_hardware_is_written_to_the_new_one_and_taken_back_from_it() {
    let mut bench = Bench::new().await;
    bench.look().await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    exchange(&mut bench, "a", "S-1", 10).await;
    assert_eq!(applied(&bench, "a"), 1, "the first name that is known is that of the hardware that is there");
    let told = bench.told.len();
    exchange(&mut bench, "a", "S-2", 7).await;
    assert_eq!((applied(&bench, "a"), bench.plant.point("a", "speed")), (2, Some(10)));
    let states: Vec<&str> = bench.told[told..].iter().map(|status| status.state.as_str()).collect();
    assert_eq!(states, ["pending", "installing", "installed"]);
    bench.rise().await;
    bench.settle().await;
    assert_eq!(applied(&bench, "a"), 2, "it is remembered over a restart");
    bench.want(&[]).await;
    assert_eq!(bench.plant.point("a", "speed"), Some(7), "back to what the new hardware came with");
}

#[tokio::test]
async fn a_configuration_stays_with_the_gateway_when_the_hardware_is_replaced() {
    let mut bench = Bench::new().await;
    bench.look().await;
    exchange(&mut bench, "a", "S-1", 0).await;
    bench.want(&[(1, "gw/a", &["cfg"])]).await;
    exchange(&mut bench, "a", "S-2", 0).await;
    assert_eq!((applied(&bench, "a"), bench.last(1, Some("gw/a")).state), (1, State::Installed));
}

#[tokio::test]
async fn a_device_that_is_out_of_service_meanwhile_keeps_what_it_was_before() {
    let mut bench = Bench::new().await;
    bench.look().await;
    exchange(&mut bench, "a", "S-1", 3).await;
    bench.want(&[(1, "gw/a", &["r1"])]).await;
    bench.set("gw/a", |view| view.reachable = false).await;
    assert_eq!(bench.last(1, Some("gw/a")).state, State::Installed, "what is installed stays so");
    bench.set("gw/a", |view| view.reachable = true).await;
    bench.want(&[]).await;
    assert_eq!((applied(&bench, "a"), bench.plant.point("a", "speed")), (1, Some(3)));
}

#[tokio::test]
async fn hardware_that_is_replaced_between_question_and_order_is_asked_again() {
    let mut bench = Bench::new().await;
    bench.look().await;
    exchange(&mut bench, "a", "S-1", 3).await;
    bench.wish(&[(1, "gw/a", &["r1"])]).await;
    bench.do_job(0).await;
    assert!(matches!(bench.jobs[..], [(_, Job::Before { .. })]));
    // Others keep every place busy, so that nothing looks at the device meanwhile.
    let others: Vec<(usize, &str, &[&str])> = (2..12).map(|n| (n, "gw/b", &["mode"][..])).collect();
    bench.wish(&[&[(1, "gw/a", &["r1"][..])], &others[..]].concat()).await;
    bench.devices.get_mut(&path("gw/a")).unwrap().hardware = "S-2".to_owned();
    bench.plant.points.insert(("a".to_owned(), "speed".to_owned()), json!(7));
    bench.look().await;
    assert_eq!((applied(&bench, "a"), bench.plant.point("a", "speed")), (1, Some(10)));
    bench.want(&[]).await;
    assert_eq!(bench.plant.point("a", "speed"), Some(7), "back to what the new hardware came with");
}
