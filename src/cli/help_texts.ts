/** What `--help` says beyond the options. */

export const DIFF_HELP = `
Reads the kernel and holds it against what the daemon wants there: "- " is found and not wanted, "+ " wanted and not found. Changes
nothing. Exit status: 0 equal (nothing is printed), 1 it differs, 2 it cannot be told.`;

export const SWITCH_HELP = `
On a running node, without a gap: the new dataplane is tried in an empty network namespace, and both are asked about the packets that would tell
them apart: for every endpoint and every rule, those that just match and those that just miss. Where they differ about one, nothing is changed and
that packet is named. Then the new one is put in force beside the old one and read back; while both are in force a packet has to pass
both. Then the old one is removed. Established connections live. Where anything is not as wanted, the old one stays, and what was made of
the new one is removed.

The configuration file is yours and is not written. The daemon remembers the switch in its state directory, so that it outlives restarts, for as
long as the configuration names the dataplanes that it names now: edit it afterwards, and it has the last word again.`;

export const SWEEP_HELP = `
Removes from this node: the rules, sets and tables of every dataplane that manx has (policy, address translation, services) and the
routes that it made, and nothing of anybody else. It needs no daemon. What stays: pods' links and addresses (--links removes the
links), the datastore, the configuration, established connections.

Nothing filters the traffic of pods that still run afterwards: drain the node first, or stop what must not be reached.

While a daemon runs it refuses, because the daemon would put everything back at once; --force does it all the same.
Exit status: 0 nothing of ours is left, 1 something is, or a daemon runs.`;
