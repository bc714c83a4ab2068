//! What compose files need, key by key.

use super::super::tests::file;
use super::*;

fn found(text: &str) -> Vec<(Privilege, String)> {
    let project = file(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    project.needs.into_iter().map(|need| (need.what, need.place)).collect()
}

fn of_service(line: &str) -> Vec<Privilege> {
    found(&format!("services:\n  web:\n    image: a\n    {line}\n")).into_iter().map(|(what, _)| what).collect()
}

#[test]
fn what_stays_in_its_containers_needs_nothing() {
    let text = "name: shop\nversion: '3.8'\nx-all: &all {restart: always}\nservices:\n  web:\n    <<: *all\n    image: ${IMAGE:-web:1}\n    command: ['/bin/web', --privileged]\n    ports: ['8080:80', {target: 81, published: '${PORT}'}]\n    volumes: ['data:/data:rw', /tmp, {type: volume, source: data, target: /b}, {type: tmpfs, target: /t}]\n    networks: [back]\n    privileged: false\n    network_mode: service:db\n    pid: service:db\n    cap_drop: [ALL]\n    security_opt: ['no-new-privileges:true']\n    logging: {driver: json-file, options: {max-size: 1m}}\n    deploy: {replicas: 2, resources: {limits: {cpus: '0.5', memory: 64M}}}\n    configs: [c]\n    secrets: [s]\n    extends: {service: db}\n    env_file: [app.env, {path: b/c.env, required: false}]\n    pull_policy: always\n    x-note: {privileged: true}\n  db: {image: db}\nvolumes: {data: , other: {driver: local, labels: {a: b}}}\nnetworks: {back: {internal: true}}\nconfigs: {c: {content: x}}\nsecrets: {s: {environment: TOKEN}}\n";
    assert_eq!(found(text), []);
}

#[test]
fn whatever_reaches_the_host_is_named() {
    use Privilege as P;
    for (line, wanted) in [
        ("build: .", P::Build),
        ("pull_policy: build", P::Build),
        ("privileged: true", P::Privileged),
        ("privileged: yes", P::Privileged),
        ("privileged: '${P}'", P::Privileged),
        ("post_start: [{command: a, privileged: true}]", P::Privileged),
        ("network_mode: host", P::HostNamespaces),
        ("network_mode: 'container:other'", P::HostNamespaces),
        ("network_mode: $N", P::HostNamespaces),
        ("pid: host", P::HostNamespaces),
        ("ipc: host", P::HostNamespaces),
        ("uts: host", P::HostNamespaces),
        ("cgroup: host", P::HostNamespaces),
        ("userns_mode: host", P::HostNamespaces),
        ("volumes: ['/:/host']", P::HostPaths),
        ("volumes: ['/var/run/docker.sock:/s:ro']", P::HostPaths),
        ("volumes: ['~/x:/x']", P::HostPaths),
        ("volumes: ['../x:/x']", P::HostPaths),
        ("volumes: ['./a/../../x:/x']", P::HostPaths),
        ("volumes: ['${V}:/x']", P::HostPaths),
        ("volumes: ['$V']", P::HostPaths),
        ("volumes: ['C:\\:/x']", P::HostPaths),
        ("volumes: [{type: bind, source: /, target: /x}]", P::HostPaths),
        ("volumes: [{type: '${T}', source: data, target: /x}]", P::Everything),
        ("volumes: [{source: /etc, target: /x}]", P::HostPaths),
        ("volumes: [{type: volume, source: '${S}', target: /x}]", P::HostPaths),
        ("volumes: ['./conf:/conf']", P::PackageFiles),
        ("volumes: [{type: bind, source: ./a, target: /x}]", P::PackageFiles),
        ("env_file: /etc/shadow", P::HostPaths),
        ("env_file: [{path: ../x}]", P::HostPaths),
        ("devices: ['/dev/mem:/dev/mem']", P::Devices),
        ("device_cgroup_rules: ['c 1:3 mr']", P::Devices),
        ("gpus: all", P::Devices),
        ("deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}", P::Devices),
        ("cap_add: [SYS_ADMIN]", P::Capabilities),
        ("security_opt: ['seccomp:unconfined']", P::SecurityOptions),
        ("security_opt: ['no-new-privileges:false']", P::SecurityOptions),
        ("sysctls: {net.ipv4.ip_forward: 1}", P::EngineOptions),
        ("runtime: other", P::EngineOptions),
        ("cgroup_parent: /x", P::EngineOptions),
        ("logging: {driver: syslog, options: {syslog-address: 'tcp://x'}}", P::EngineOptions),
        ("volumes_from: ['container:other']", P::External),
        ("external_links: [other]", P::External),
        ("extends: {file: other.yaml, service: a}", P::Everything),
        ("use_api_socket: true", P::Everything),
        ("provider: {type: x}", P::Everything),
        ("develop: {watch: []}", P::Everything),
    ] {
        assert_eq!(of_service(line), [wanted], "{line}");
    }
    let top = "services: {web: {image: a}}\n";
    for (line, wanted) in [
        ("include: [other.yaml]", P::Everything),
        ("models: {a: {model: b}}", P::Everything),
        ("volumes: {data: {external: true}}", P::External),
        ("volumes: {data: {name: other_data}}", P::External),
        ("volumes: {data: {driver_opts: {type: none, o: bind, device: /}}}", P::HostPaths),
        ("volumes: {data: {driver: nfs}}", P::EngineOptions),
        ("networks: {lan: {driver: macvlan}}", P::EngineOptions),
        ("networks: {lan: {external: true}}", P::External),
        ("configs: {c: {file: /etc/passwd}}", P::HostPaths),
        ("configs: {c: {file: ./app.conf}}", P::PackageFiles),
        ("secrets: {c: {file: '${F}'}}", P::HostPaths),
        ("secrets: {c: {external: true}}", P::External),
    ] {
        let kinds: Vec<Privilege> = found(&format!("{top}{line}\n")).into_iter().map(|(what, _)| what).collect();
        assert_eq!(kinds, [wanted], "{line}");
    }
    let merged = "x-p: &p {privileged: true}\nservices: {web: {<<: *p, image: a}}\n";
    assert_eq!(found(merged), [(P::Privileged, "services.web.privileged".to_owned())]);
}

#[test]
fn a_host_allows_by_name() {
    let need = |what| Need { what, place: "services.web.x".to_owned() };
    let needs = [need(Privilege::PackageFiles), need(Privilege::Privileged)];
    let mut allowed = Allowed { is_local: true, ..Allowed::default() };
    assert_eq!(allowed.refuses(&needs), Some(&needs[1]));
    assert_eq!(needs[1].to_string(), "services.web.x needs \"privileged\" in `allow`");
    allowed.privileges.insert(Privilege::Privileged);
    assert_eq!(allowed.refuses(&needs), None);
    allowed.is_local = false;
    assert_eq!(allowed.refuses(&needs), Some(&needs[0]));
    allowed.privileges.insert(Privilege::Everything);
    assert_eq!(allowed.refuses(&needs), None);
    for (name, what) in PRIVILEGES {
        assert!(need(*what).to_string().contains(name));
    }
}
