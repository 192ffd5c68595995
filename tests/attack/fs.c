/* Paths: every way to read, change, create, move or reach one. All take their paths as arguments. */
#include "attack.h"

#include <dirent.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/xattr.h>

#define PATH_ARG arg(c, v, 1, "/none")
#define SECOND_ARG arg(c, v, 2, "/none")

static int read_fd(int fd) {
  char text[200];
  if (fd < 0) return errno;
  ssize_t got = read(fd, text, sizeof text - 1);
  int code = verdict(got);
  close(fd);
  if (got < 0) return code;
  text[got] = 0;
  text[strcspn(text, "\n")] = 0;
  detail("%s", text);
  return OK;
}
static int write_fd(int fd) {
  if (fd < 0) return errno;
  int code = verdict(write(fd, "attack\n", 7));
  close(fd);
  return code;
}

static int read_path(int c, char **v) { return read_fd(open(PATH_ARG, O_RDONLY | O_CLOEXEC | O_NONBLOCK)); }
static int write_path(int c, char **v) { return write_fd(open(PATH_ARG, O_WRONLY | O_CLOEXEC | O_NONBLOCK)); }
static int append_path(int c, char **v) { return write_fd(open(PATH_ARG, O_WRONLY | O_APPEND | O_CLOEXEC)); }
static int create_path(int c, char **v) { return write_fd(open(PATH_ARG, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)); }
static int trunc_open(int c, char **v) { return try_open(PATH_ARG, O_WRONLY | O_TRUNC); }
static int list_path(int c, char **v) {
  DIR *dir = opendir(PATH_ARG);
  int count = 0;
  if (!dir) return errno;
  errno = 0;
  for (struct dirent *entry; (entry = readdir(dir));)
    if (entry->d_name[0] != '.') count++, detail("%s ", entry->d_name);
  int code = errno;
  closedir(dir);
  return code ? code : OK;
}
static int stat_path(int c, char **v) {
  struct stat info;
  if (lstat(PATH_ARG, &info)) return errno;
  detail("mode=%o uid=%d gid=%d size=%lld", info.st_mode, (int)info.st_uid, (int)info.st_gid, (long long)info.st_size);
  return OK;
}
static int truncate_path(int c, char **v) { return verdict(truncate(PATH_ARG, 0)); }
static int unlink_path(int c, char **v) { return verdict(unlink(PATH_ARG)); }
static int rmdir_path(int c, char **v) { return verdict(rmdir(PATH_ARG)); }
static int mkdir_path(int c, char **v) { return verdict(mkdir(PATH_ARG, 0700)); }
static int mkfifo_path(int c, char **v) { return verdict(mkfifo(PATH_ARG, 0600)); }
static int chmod_path(int c, char **v) { return verdict(chmod(PATH_ARG, 0777)); }
static int chown_path(int c, char **v) { return verdict(lchown(PATH_ARG, getuid(), getgid())); }
static int chown_root(int c, char **v) { return verdict(lchown(PATH_ARG, 0, 0)); }
static int touch_path(int c, char **v) { return verdict(utimes(PATH_ARG, NULL)); }
static int setxattr_path(int c, char **v) { return verdict(setxattr(PATH_ARG, "user.attack", "x", 1, 0)); }
static int rename_path(int c, char **v) { return verdict(rename(PATH_ARG, SECOND_ARG)); }
static int exchange_path(int c, char **v) {
  return verdict(syscall(SYS_renameat2, AT_FDCWD, PATH_ARG, AT_FDCWD, SECOND_ARG, 2 /* RENAME_EXCHANGE */));
}
static int whiteout_path(int c, char **v) {
  return verdict(syscall(SYS_renameat2, AT_FDCWD, PATH_ARG, AT_FDCWD, SECOND_ARG, 4 /* RENAME_WHITEOUT */));
}
static int link_path(int c, char **v) { return verdict(link(PATH_ARG, SECOND_ARG)); }
static int link_follow(int c, char **v) {
  return verdict(linkat(AT_FDCWD, PATH_ARG, AT_FDCWD, SECOND_ARG, AT_SYMLINK_FOLLOW));
}
/* By /proc/self/fd of an O_PATH descriptor: the way to name an inode that has no name here. */
static int link_procfd(int c, char **v) {
  char path[64];
  int fd = open(PATH_ARG, O_PATH | O_CLOEXEC);
  if (fd < 0) return errno;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return verdict(linkat(AT_FDCWD, path, AT_FDCWD, SECOND_ARG, AT_SYMLINK_FOLLOW));
}
static int symlink_path(int c, char **v) { return verdict(symlink(PATH_ARG, SECOND_ARG)); }

/* Opened in the way that is allowed, then again through /proc/self/fd in the way that is not. */
static int reopen(const char *path, int first, int second) {
  char again[64];
  int fd = open(path, first | O_CLOEXEC);
  if (fd < 0) return errno;
  snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
  return second == O_RDONLY ? read_fd(open(again, second | O_CLOEXEC)) : write_fd(open(again, second | O_CLOEXEC));
}
static int reopen_write(int c, char **v) { return reopen(PATH_ARG, O_RDONLY, O_WRONLY); }
static int reopen_opath(int c, char **v) { return reopen(PATH_ARG, O_PATH, O_WRONLY); }
static int reopen_read(int c, char **v) { return reopen(PATH_ARG, O_PATH, O_RDONLY); }

static int through(const char *prefix, char *path, int flags) {
  char full[1024];
  snprintf(full, sizeof full, "%s%s", prefix, path);
  return flags == O_RDONLY ? read_fd(open(full, flags | O_CLOEXEC)) : write_fd(open(full, flags | O_CLOEXEC));
}
static int procroot_read(int c, char **v) { return through("/proc/self/root", PATH_ARG, O_RDONLY); }
static int procroot_write(int c, char **v) { return through("/proc/self/root", PATH_ARG, O_WRONLY); }
static int initroot_read(int c, char **v) { return through("/proc/1/root", PATH_ARG, O_RDONLY); }
static int initcwd_read(int c, char **v) { return through("/proc/1/cwd", PATH_ARG, O_RDONLY); }
static int dotdot_read(int c, char **v) { return through("/tmp/../../../../../../../../..", PATH_ARG, O_RDONLY); }

/* up DIR PATH: from an O_PATH descriptor of DIR, upwards as far as it goes, then down to PATH. */
static int up_read(int c, char **v) {
  char climb[1024] = "";
  int fd = open(PATH_ARG, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno;
  for (int i = 0; i < 40; i++) strcat(climb, "../");
  strncat(climb, SECOND_ARG + 1, sizeof climb - strlen(climb) - 1);
  return read_fd(openat(fd, climb, O_RDONLY | O_CLOEXEC));
}
/* climb DIR PATH: step by step, holding each parent by descriptor. */
static int climb_read(int c, char **v) {
  int fd = open(PATH_ARG, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno;
  for (int i = 0; i < 40; i++) {
    int parent = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0) return errno;
    close(fd);
    fd = parent;
  }
  return read_fd(openat(fd, SECOND_ARG + 1, O_RDONLY | O_CLOEXEC));
}
/* Working directory moved out from under us: chdir deep, rename it upwards, climb. moved_read DIR OTHER PATH */
static int moved_read(int c, char **v) {
  char deep[1024], target[1024];
  snprintf(deep, sizeof deep, "%s/attack-deep", PATH_ARG);
  snprintf(target, sizeof target, "%s/attack-moved", SECOND_ARG);
  if (mkdir(deep, 0700) || chdir(deep)) return errno;
  int moved = rename(deep, target);
  int code = moved ? errno : OK;
  char climb[1024] = "";
  for (int i = 0; i < 40; i++) strcat(climb, "../");
  strncat(climb, arg(c, v, 3, "/none") + 1, sizeof climb - strlen(climb) - 1);
  int got = moved ? code : read_fd(open(climb, O_RDONLY | O_CLOEXEC));
  if (chdir("/")) return errno;
  rmdir(deep);
  rmdir(target);
  return got;
}
/* openat2 without any RESOLVE_ flag. */
static int openat2_read(int c, char **v) {
  static uint64_t how[3] = {O_RDONLY | O_CLOEXEC, 0, 0};
  return read_fd((int)call4(NR_openat2, AT_FDCWD, P(low(PATH_ARG)), P(how), sizeof how));
}
static int openat2_write(int c, char **v) {
  static uint64_t how[3] = {O_WRONLY | O_CLOEXEC, 0, 0};
  return write_fd((int)call4(NR_openat2, AT_FDCWD, P(low(PATH_ARG)), P(how), sizeof how));
}
static int tmpfile_link(int c, char **v) {
  char path[64];
  int fd = open(PATH_ARG, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0) return errno;
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return verdict(linkat(AT_FDCWD, path, AT_FDCWD, SECOND_ARG, AT_SYMLINK_FOLLOW));
}
/* A read-only descriptor mapped shared, then made writable. */
static int map_write(int c, char **v) {
  int fd = open(PATH_ARG, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) return errno;
  if (mprotect(page, 4096, PROT_READ | PROT_WRITE)) return errno;
  page[0] = 'X';
  return OK;
}
static int set_flags(int c, char **v) {
  static int flags;
  int fd = open(PATH_ARG, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  if (ioctl(fd, 0x80086601 /* FS_IOC_GETFLAGS */, &flags)) return errno;
  flags |= 0x10; /* immutable */
  return verdict(ioctl(fd, 0x40086602 /* FS_IOC_SETFLAGS */, &flags));
}
static int fallocate_path(int c, char **v) {
  int fd = open(PATH_ARG, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  return verdict(fallocate(fd, 0, 0, 1 << 20));
}
/* Being told of what happens in a place that may not be read. */
static int watch_path(int c, char **v) {
  int fd = inotify_init1(IN_CLOEXEC);
  if (fd < 0) return errno;
  return verdict(inotify_add_watch(fd, PATH_ARG, IN_ALL_EVENTS));
}
static int chdir_path(int c, char **v) { return verdict(chdir(PATH_ARG)); }
static int lock_path(int c, char **v) {
  int fd = open(PATH_ARG, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  return verdict(flock(fd, LOCK_EX | LOCK_NB));
}
static int readlink_path(int c, char **v) {
  char target[512];
  ssize_t got = readlink(PATH_ARG, target, sizeof target - 1);
  if (got < 0) return errno;
  target[got] = 0;
  detail("%s", target);
  return OK;
}
/* Device files inside: only those of the minimal set may be there. list_devices DIR */
static int list_devices(int c, char **v) {
  DIR *dir = opendir(arg(c, v, 1, "/dev"));
  if (!dir) return errno;
  for (struct dirent *entry; (entry = readdir(dir));) {
    struct stat info;
    if (!fstatat(dirfd(dir), entry->d_name, &info, 0) && (S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode)))
      detail("%s ", entry->d_name);
  }
  closedir(dir);
  return OK;
}

#define FS(name, fn) {name, "fs", 0, fn}
const struct attempt fs_attempts[] = {
    FS("read", read_path),
    FS("write", write_path),
    FS("append", append_path),
    FS("create", create_path),
    FS("trunc_open", trunc_open),
    FS("list", list_path),
    FS("stat", stat_path),
    FS("truncate", truncate_path),
    FS("unlink", unlink_path),
    FS("rmdir", rmdir_path),
    FS("mkdir", mkdir_path),
    FS("mkfifo", mkfifo_path),
    FS("chmod", chmod_path),
    FS("chown", chown_path),
    FS("chown_root", chown_root),
    FS("touch", touch_path),
    FS("setxattr", setxattr_path),
    FS("rename", rename_path),
    FS("exchange", exchange_path),
    FS("whiteout", whiteout_path),
    FS("link", link_path),
    FS("link_follow", link_follow),
    FS("link_procfd", link_procfd),
    FS("symlink", symlink_path),
    FS("reopen_write", reopen_write),
    FS("reopen_opath", reopen_opath),
    FS("reopen_read", reopen_read),
    FS("procroot_read", procroot_read),
    FS("procroot_write", procroot_write),
    FS("initroot_read", initroot_read),
    FS("initcwd_read", initcwd_read),
    FS("dotdot_read", dotdot_read),
    FS("up_read", up_read),
    FS("climb_read", climb_read),
    FS("moved_read", moved_read),
    FS("openat2_read", openat2_read),
    FS("openat2_write", openat2_write),
    FS("tmpfile_link", tmpfile_link),
    FS("map_write", map_write),
    FS("set_flags", set_flags),
    FS("fallocate", fallocate_path),
    FS("watch", watch_path),
    FS("chdir", chdir_path),
    FS("lock", lock_path),
    FS("readlink", readlink_path),
    FS("list_devices", list_devices),
    {NULL, NULL, 0, NULL},
};
