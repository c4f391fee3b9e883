#!/bin/sh
# Makes a role and a user in etcd that may read and write the keys of one Berth cluster, and nothing else; and a role that may only
# read them. Run it again to change the password. It does not turn authentication on: see the end of what it says.
#
# etcdctl is told where etcd is, and as whom to speak, by its own variables: ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT,
# ETCDCTL_KEY, and with authentication on ETCDCTL_USER=root:PASSWORD.
set -eu

usage() {
    cat <<TXT
usage: etcd-role.sh [--cluster NAME] [--prefix PATH] [--user NAME] [--password-file FILE]

  --cluster NAME         cluster.name of the brokers (default berth)
  --prefix PATH          etcd.prefix of the brokers (default /berth)
  --user NAME            etcd.username of the brokers, and the name of their role (default berth-CLUSTER)
  --password-file FILE   its first line is the password, as in etcd.password_file (default: the first line of standard input)

Also makes the role USER-reader, for people and dashboards, and gives it to nobody.
TXT
}

fail() {
    echo "etcd-role.sh: $*" >&2
    exit 1
}

cluster=berth prefix=/berth user='' file=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --cluster) cluster=${2:?--cluster needs a name}; shift 2 ;;
        --prefix) prefix=${2:?--prefix needs a path}; shift 2 ;;
        --user) user=${2:?--user needs a name}; shift 2 ;;
        --password-file) file=${2:?--password-file needs a file}; shift 2 ;;
        *) usage >&2; fail "unknown argument $1" ;;
    esac
done
user=${user:-berth-$cluster}
case $cluster in *[!a-zA-Z0-9._-]*) fail "--cluster $cluster: expected the characters a-z A-Z 0-9 . _ -" ;; esac
case $prefix in */ | [!/]*) fail "--prefix $prefix: expected a path such as /berth, without a / at its end" ;; esac
case $user in *[!a-zA-Z0-9._-]* | root) fail "--user $user: expected the characters a-z A-Z 0-9 . _ -, and not root" ;; esac
command -v etcdctl >/dev/null || fail "etcdctl is needed"
export ETCDCTL_API=3

if [ -n "$file" ]; then
    [ -r "$file" ] || fail "cannot read $file"
    IFS= read -r password <"$file" || [ -n "$password" ] || fail "$file is empty"
else
    if [ -t 0 ]; then echo "password for $user (it is shown):" >&2; fi
    IFS= read -r password || [ -n "$password" ] || fail "no password on standard input"
fi
[ -n "$password" ] || fail "the password is empty"
# etcdctl reads one word.
case $password in *[[:space:]]*) fail "the password has white space, which etcdctl cannot read" ;; esac

# With the / at its end: without it the role could also use a cluster whose name begins with this one's.
keys=$prefix/$cluster/v1/

# Each of a name's own line: `berth` must not be found in `berth2`.
listed() { etcdctl "$1" list | grep -Fxq -- "$2"; }

etcdctl endpoint health >/dev/null || fail "etcd does not answer: check ETCDCTL_ENDPOINTS (and ETCDCTL_CACERT, ETCDCTL_USER)"
for role in "$user" "$user-reader"; do
    listed role "$role" || etcdctl role add "$role"
done
etcdctl role grant-permission "$user" --prefix=true readwrite "$keys"
etcdctl role grant-permission "$user-reader" --prefix=true read "$keys"
if listed user "$user"; then
    printf '%s\n' "$password" | etcdctl user passwd "$user" --interactive=false
else
    printf '%s\n' "$password" | etcdctl user add "$user" --interactive=false
fi
etcdctl user grant-role "$user" "$user"

cat <<TXT

The brokers' configuration:
  cluster: { name: $cluster }
  etcd: { prefix: $prefix, username: $user, password_file: FILE }

Until authentication is on, etcd lets everybody do everything. To turn it on, once:
  etcdctl user add root && etcdctl user grant-role root root && etcdctl auth enable
TXT
