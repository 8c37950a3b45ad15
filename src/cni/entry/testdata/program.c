/* A program that tells how it was started: with the entry before it it has to say what it says without. `hold`: standard input as well. */
#define _GNU_SOURCE
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

extern char **environ;
static __thread int own = 42;
static int constructed;
__attribute__((constructor)) static void construct(void) { constructed++; }
static void at_exit(void) { puts("exit handler"); }

static int show(struct dl_phdr_info *info, size_t size, void *data) {
  (void)size;
  if (*(int *)data == 0) {
    printf("object base %#lx, %d headers:", (unsigned long)info->dlpi_addr, info->dlpi_phnum);
    for (int i = 0; i < info->dlpi_phnum; i++) printf(" %u", info->dlpi_phdr[i].p_type);
    printf("\n");
  }
  ++*(int *)data;
  return 0;
}

int main(int argc, char **argv) {
  atexit(at_exit);
  for (int i = 0; i < argc; i++) printf("argument %s\n", argv[i]);
  for (char **variable = environ; *variable != NULL; variable++) printf("variable %s\n", *variable);
  printf("entry %#lx, page %lu, secure %lu, interpreter %s\n", getauxval(AT_ENTRY), getauxval(AT_PAGESZ), getauxval(AT_SECURE),
         getauxval(AT_BASE) == 0 ? "missing" : "mapped");
  int objects = 0;
  dl_iterate_phdr(show, &objects);
  printf("objects %d, thread's own %d, constructed %d, stack %lu\n", objects, own, constructed,
         (unsigned long)__builtin_frame_address(0) % 16);
  void *large = malloc(1 << 22);
  printf("heap %s\n", large == NULL ? "none" : "there");
  char text[1 << 16];
  long total = 0, got;
  while ((got = read(0, text, sizeof text)) > 0) {
    if (total == 0) printf("standard input begins %.*s\n", (int)(got < 60 ? got : 60), text);
    total += got;
  }
  printf("standard input %ld bytes\n", got < 0 ? -1 : total);
  return 7;
}
