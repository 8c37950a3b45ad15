#!/usr/bin/perl
# PID 1 of the guest: file systems, modules, one command, power off. Perl, because it is on every Debian (perl-base is
# essential) and one process that makes system calls starts a second sooner under emulation than a shell that forks mount(8).
#
# Its directory (@CONTROL@ of the host, /run/manx-vm here) holds argv, env, cwd, modules and writable, NUL-separated, and takes out, err and
# status. @NAME@ marks are filled in by machine.ts.
use strict;
use warnings;

my ($MODULES, $RELEASE) = ('@MODULES@', '@RELEASE@');
my $CONTROL = '/run/manx-vm';
$ENV{PATH} = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

# include/uapi/linux/mount.h
my ($NODEV, $NOSUID_NODEV, $NOSUID_NODEV_NOEXEC, $BIND, $MOVE) = (4, 6, 14, 4096, 8192);
# System call numbers of x86-64, include/uapi/asm/unistd_64.h.
my %CALL = (
    sync => 162, setsid => 112, mknod => 133, pivot_root => 155, setrlimit => 160, mount => 165, umount2 => 166,
    sethostname => 170, finit_module => 313,
);

sub read_file { open(my $file, '<', $_[0]) or return ''; local $/; my $text = <$file>; return $text // '' }
sub write_file { open(my $file, '>', $_[0]) or return; print $file $_[1]; close $file }
sub power_off { write_file('/proc/sysrq-trigger', 'b'); sleep 60 }
sub give_up { print STDERR "guest: @_: $!\n"; power_off() }
sub mount_at {
    my ($source, $target, $type, $flags, $data) = @_;
    $flags //= 0; $data //= '';
    return syscall($CALL{mount}, $source, $target, $type, $flags, $data) == 0;
}

# 1. The host's root, read-only, becomes the lower layer of an overlay.
mount_at('proc', '/proc', 'proc', $NOSUID_NODEV_NOEXEC);
mount_at('sysfs', '/sys', 'sysfs', $NOSUID_NODEV_NOEXEC);
-e '/dev/null' or mount_at('devtmpfs', '/dev', 'devtmpfs', 2);
{
    open(my $overlay, '<', "$MODULES/kernel/fs/overlayfs/overlay.ko") or give_up('open overlay.ko');
    my $options = '';
    syscall($CALL{finit_module}, fileno($overlay), $options, 0) == 0 or give_up('load overlay.ko');
}
mount_at('tmpfs', '/mnt', 'tmpfs', 0, 'size=75%,mode=755') or give_up('mount tmpfs');
mkdir "/mnt/$_" for qw(upper work guest);
mount_at('overlay', '/mnt/guest', 'overlay', 0, 'lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work')
    or give_up('mount overlay');
mount_at("/$_", "/mnt/guest/$_", 'none', $MOVE) or give_up("move /$_") for qw(proc sys dev);
chdir '/mnt/guest' or give_up('chdir');
my ($here, $put_old) = ('.', 'mnt');
syscall($CALL{pivot_root}, $here, $put_old) == 0 or give_up('pivot_root');
chroot '.' or give_up('chroot');
chdir '/';
my $old_root = '/mnt';
syscall($CALL{umount2}, $old_root, 2);    # MNT_DETACH

# 2. The rest of the file systems.
mount_at('tmpfs', '/run', 'tmpfs', $NOSUID_NODEV, 'mode=755');
mkdir "/run/$_" for qw(lock manx-vm netns);
chmod 01777, '/run/lock';
mkdir "/dev/$_" for qw(pts shm net);
mount_at('devpts', '/dev/pts', 'devpts', 10, 'mode=620,ptmxmode=666');
mount_at('tmpfs', '/dev/shm', 'tmpfs', $NOSUID_NODEV, 'mode=1777');
my $tun = '/dev/net/tun';
syscall($CALL{mknod}, $tun, 020666, (10 << 8) | 200);    # opening it loads the module
unlink "/dev/$_" for qw(fd stdin stdout stderr);
symlink '/proc/self/fd', '/dev/fd';
symlink "/proc/self/fd/$_->[0]", "/dev/$_->[1]" for [0, 'stdin'], [1, 'stdout'], [2, 'stderr'];
mount_at('cgroup2', '/sys/fs/cgroup', 'cgroup2', $NOSUID_NODEV_NOEXEC);
mount_at('bpf', '/sys/fs/bpf', 'bpf', $NOSUID_NODEV_NOEXEC, 'mode=700');
mkdir $_ for '/lib/modules', "/lib/modules/$RELEASE";
mount_at($MODULES, "/lib/modules/$RELEASE", 'none', $BIND) or give_up('bind modules');
mount_at('control', $CONTROL, 'virtiofs') or give_up('mount control');

sub finish {
    write_file("$CONTROL/status.new", "$_[0]\n");
    rename "$CONTROL/status.new", "$CONTROL/status";
    syscall($CALL{sync});
    power_off();
}
sub fail { write_file("$CONTROL/err", "guest: @_\n"); finish(125) }
sub words { return split /\0/, read_file("$CONTROL/$_[0]") }

my $host_name = 'manx-vm';
syscall($CALL{sethostname}, $host_name, length $host_name);
{
    socket(my $socket, 2, 2, 0);
    my $request = pack('Z16s x22', 'lo', 0x1 | 0x40);
    ioctl($socket, 0x8914, $request) or print STDERR "guest: lo: $!\n";    # SIOCSIFFLAGS: up, running
}
my $count = 0;
for my $directory (words('writable')) {
    mount_at("writable$count", $directory, 'virtiofs') or fail("cannot mount $directory: $!");
    $count++;
}
if (my @modules = words('modules')) {
    open(my $modprobe, '-|', 'exec 2>&1 modprobe -a -- ' . join ' ', map { s/[^\w-]//gr } @modules) or fail("modprobe: $!");
    my $said = do { local $/; <$modprobe> } // '';
    close $modprobe or fail("modprobe: $said");
}

# 3. The command. This process copies what it says to files that the host follows: virtiofs files cannot be pipes.
my $open_files = pack('QQ', 65536, 1048576);
syscall($CALL{setrlimit}, 7, $open_files);
my $no_core = pack('QQ', 0, 0);
syscall($CALL{setrlimit}, 4, $no_core);
my %environment = map { /^([^=]+)=(.*)$/s ? ($1, $2) : () } words('env');
$environment{PATH} .= ":$ENV{PATH}";
my @argv = words('argv');
my ($directory) = words('cwd');
chdir $directory or fail("cannot enter $directory: $!");
pipe(my $out_read, my $out_write);
pipe(my $err_read, my $err_write);
open(my $out_file, '>>', "$CONTROL/out");
open(my $err_file, '>>', "$CONTROL/err");
write_file("$CONTROL/booted", '1');
my $child = fork // fail("fork: $!");
if (!$child) {
    syscall($CALL{setsid});
    open(STDIN, '<', '/dev/null');
    open(STDOUT, '>&', $out_write);
    open(STDERR, '>&', $err_write);
    close $_ for $out_read, $err_read, $out_write, $err_write, $out_file, $err_file;
    %ENV = %environment;
    { no warnings; exec { $argv[0] } @argv }
    print STDERR "guest: $argv[0]: $!\n";
    require POSIX;
    POSIX::_exit(127);
}
close $out_write;
close $err_write;
my %streams = (fileno($out_read) => [$out_read, $out_file], fileno($err_read) => [$err_read, $err_file]);
my ($status, $silent) = (undef, 0);
while (%streams || !defined $status) {
    my $ready = '';
    vec($ready, $_, 1) = 1 for keys %streams;
    my $found = select($ready, undef, undef, %streams && !defined $status ? 0.05 : 0.02);
    if ($found > 0) {
        for my $number (keys %streams) {
            next unless vec($ready, $number, 1);
            if (sysread($streams{$number}[0], my $bytes, 65536)) { syswrite($streams{$number}[1], $bytes) }
            else { delete $streams{$number} }
        }
    }
    while ((my $pid = waitpid(-1, 1)) > 0) {
        $status = $? & 127 ? 128 + ($? & 127) : $? >> 8 if $pid == $child;
    }
    # What the command left behind may keep its pipes: 0.8 s of silence after its end is the end.
    if (defined $status && $found <= 0) { last if ++$silent > 40 }
}
finish($status);
