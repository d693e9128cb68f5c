//! What the process sees of the machine.

use kiln_executor::{ExecError, ExtraHost, NetworkMode, Ulimit};
use kiln_stdx::ErrorClass;

use super::fixture::Fixture;

pub async fn hosts_and_resolver_are_generated(f: &Fixture) {
    let mut spec = f.shell("cat /etc/hosts /etc/resolv.conf; touch /etc/hosts 2>/dev/null || echo readonly");
    spec.extra_hosts.push(ExtraHost { host: "db.test".to_owned(), ip: "10.1.2.3".parse().unwrap() });
    spec.resolv_conf = Some(b"nameserver 192.0.2.1\n".to_vec());
    let out = f.output_of(spec).await;
    for line in ["127.0.0.1\tlocalhost buildkitsandbox", "10.1.2.3\tdb.test", "nameserver 192.0.2.1", "readonly"] {
        assert!(out.lines().any(|found| found == line), "{line} in {out}");
    }
    assert!(!f.path("upper/etc/hosts").exists());
}

pub async fn network_none_has_only_loopback(f: &Fixture) {
    let mut spec = f.shell("ls /sys/class/net; ip addr show lo");
    spec.network = NetworkMode::None;
    let out = f.output_of(spec).await;
    assert_eq!(out.lines().next(), Some("lo"));
    assert!(out.contains("127.0.0.1") && out.contains("UP"), "{out}");
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(f.output("readlink /proc/self/ns/net").await, host);
}

pub async fn host_name_is_set(f: &Fixture) {
    assert_eq!(f.output("hostname").await, "buildkitsandbox");
    let mut spec = f.shell("hostname; grep -c example /etc/hosts");
    spec.hostname = Some("example".to_owned());
    assert_eq!(f.output_of(spec).await, "example\n1");
}

pub async fn limits_are_set(f: &Fixture) {
    let mut spec = f.shell("ulimit -n; ulimit -Hn; ulimit -c");
    let limit = |name: &str, soft, hard| Ulimit { name: name.to_owned(), soft, hard };
    spec.ulimits = vec![limit("nofile", 100, 200), limit("core", 0, 0)];
    assert_eq!(f.output_of(spec).await, "100\n200\n0");
    let mut spec = f.shell("true");
    spec.ulimits = vec![limit("nofile", 1, i64::MAX)];
    let error = f.run(spec).await.unwrap_err();
    assert!(matches!(error, ExecError::UlimitForbidden { .. }), "{error:?}");
    assert_eq!(error.class(), ErrorClass::UserInput);
}

pub async fn shared_memory_has_its_size(f: &Fixture) {
    let size = "df -k /dev/shm | { read line; read name blocks rest; echo $blocks; }";
    assert_eq!(f.output(size).await, "65536");
    let mut spec = f.shell(size);
    spec.shm_size = Some(8 << 20);
    assert_eq!(f.output_of(spec).await, "8192");
}

pub async fn kernel_files_are_masked(f: &Fixture) {
    assert_eq!(
        f.output("head -c 9 /proc/kcore 2>/dev/null | wc -c; ls /sys/firmware | wc -l").await.replace(' ', ""),
        "0\n0"
    );
    for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/x", "/sys/fs/cgroup/pids/pids.max"] {
        let ran = f.run(f.shell(&format!("echo 1 > {path}"))).await.unwrap();
        assert_ne!(ran.exit.code, 0, "{path} can be written");
    }
}

pub async fn devices_are_the_usual_ones(f: &Fixture) {
    let out = f.output("cd /dev; ls -d null zero full random urandom tty pts shm mqueue ptmx fd stdin stdout stderr; echo x > null; head -c 2 zero | wc -c").await;
    assert!(out.ends_with('2'), "{out}");
    let mut spec = f.shell("head -c 4 /dev/urandom | wc -c; test -w /dev/null && echo yes");
    spec.user = "app".to_owned();
    assert_eq!(f.output_of(spec).await.replace(' ', ""), "4\nyes");
    assert_eq!(f.output("ls /dev | grep -c -E '^(sd|vd|nvme|loop|kmsg|mem)'; true").await, "0");
}

pub async fn host_devices_cannot_be_opened(f: &Fixture) {
    // 1:1 is the machine's memory; reading it must fail whatever node is used.
    for dir in ["/tmp", "/dev"] {
        let script = format!("mknod {dir}/mem c 1 1 || exit 3; head -c 1 {dir}/mem");
        let ran = f.run(f.shell(&script)).await.unwrap();
        assert_ne!(ran.exit.code, 0, "{dir}: {ran:?}");
        assert!(ran.err.contains("not permitted") || ran.err.contains("ermission denied"), "{ran:?}");
    }
    // A harmless one works, as programs that make a root file system expect.
    f.output("mknod /tmp/null c 1 3 && echo x > /tmp/null").await;
}

pub async fn the_ca_bundle_is_seen_and_leaves_nothing(f: &Fixture) {
    std::fs::write(f.path("bundle.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let mut spec = f.shell(
        "cat $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS; echo $PIP_CERT; touch $SSL_CERT_FILE 2>/dev/null || echo readonly",
    );
    spec.env.push(("PIP_CERT".to_owned(), "/mine".to_owned()));
    spec.ca_bundle = Some(f.path("bundle.pem"));
    let out = f.output_of(spec).await;
    assert_eq!(out, "-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n/mine\nreadonly");
    assert_eq!(
        std::fs::read_dir(f.path("upper"))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() == "dev")
            .count(),
        0
    );
}
