/*
 * The first instructions of `manx`: where a container runtime calls it as a CNI plugin, they ask the daemon and end.
 *
 * A runtime starts the plugin anew for every call, and to start the JavaScript runtime takes longer than all the rest of an ADD. What the client
 * does is little: it hands environment and standard input to the daemon, and the answer to standard output. That needs no such runtime. All that
 * is not plain (no daemon, no answer, another release's daemon) is left to src/cni/run.ts: the program is entered then as if this had not been
 * there, with its standard input whole. So is every start that is no CNI call.
 *
 * The build gives it a segment of its own in the executable, makes it the entry point and hides the interpreter from the kernel
 * (scripts/attach_entry.ts), so that no dynamic loader runs for a call. For the program it maps the loader itself, as the kernel would have done:
 * execve(2), elf(5), getauxval(3), fs/binfmt_elf.c. Freestanding: no libc, no writable data.
 *
 * The build defines, from the program's file: ENTRY_ADDRESS, PROGRAM_ENTRY, PROGRAM_HEADERS (addresses), PROGRAM_HEADER_COUNT, INTERPRETER (a path),
 * INTERPRETER_OFFSET, INTERPRETER_ADDRESS, INTERPRETER_BYTES; and from the client in src/cni: DEFAULT_SOCKET, INPUT_LIMIT_BYTES,
 * ANSWER_LIMIT_BYTES, ANSWER_DEADLINE_S.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

#ifndef __x86_64__
#error "written for x86-64"
#endif

#define REQUEST_HEAD "POST /v1/cni/call HTTP/1.1\r\nHost: manx\r\nConnection: close\r\nContent-Length: "
#define PAGE_BYTES 4096ul

typedef unsigned long word;

/* What the kernel leaves on the stack of a new program: argc, argv, NULL, environment, NULL, auxiliary vector. */
struct start {
  word *stack;
  char **environment;
  Elf64_auxv_t *auxiliary;
  word pairs; /* of the auxiliary vector, AT_NULL among them */
};

struct bytes {
  const char *at;
  word length;
};

/* The compiler calls these two of its own accord. */
void *memcpy(void *to, const void *from, size_t length) {
  void *start = to;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
  return start;
}

void *memset(void *to, int byte, size_t length) {
  void *start = to;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(byte) : "memory");
  return start;
}

static word length_of(const char *text) {
  word length = 0;
  while (text[length] != 0) length++;
  return length;
}

/* What follows `with`, NULL where `text` does not begin so. */
static const char *after(const char *text, const char *with) {
  while (*with != 0) {
    if (*text++ != *with++) return NULL;
  }
  return text;
}

/* Returns what the kernel does: negative numbers are errors. */
static long call(long number, word a, word b, word c, word d, word e, word f) {
  long returned;
  register word r10 __asm__("r10") = d;
  register word r8 __asm__("r8") = e;
  register word r9 __asm__("r9") = f;
  do {
    __asm__ volatile("syscall"
                     : "=a"(returned)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
  } while (returned == -EINTR);
  return returned;
}

#define CALL(number, a, b, c) call(number, (word)(a), (word)(b), (word)(c), 0, 0, 0)
#define MMAP(at, length, protection, flags, fd, offset) \
  call(SYS_mmap, (word)(at), length, protection, flags, (word)(fd), offset)

static _Noreturn void leave(int status) {
  for (;;) CALL(SYS_exit_group, status, 0, 0);
}

static _Noreturn void fail(const char *why) {
  CALL(SYS_write, 2, "manx: cannot start: ", 20);
  CALL(SYS_write, 2, why, length_of(why));
  CALL(SYS_write, 2, "\n", 1);
  leave(127);
}

/* ---- The program ------------------------------------------------------------------------------------------------------------------ */

static long map_segment(word base, const Elf64_Phdr *segment, long fd) {
  int protection = (segment->p_flags & PF_R ? PROT_READ : 0) | (segment->p_flags & PF_W ? PROT_WRITE : 0) |
                   (segment->p_flags & PF_X ? PROT_EXEC : 0);
  word before = segment->p_vaddr % PAGE_BYTES;
  word begin = base + segment->p_vaddr - before;
  word held = base + segment->p_vaddr + segment->p_filesz;
  word end = base + segment->p_vaddr + segment->p_memsz;
  word next = (held + PAGE_BYTES - 1) & -PAGE_BYTES;
  long mapped = MMAP(begin, held - begin, protection, MAP_PRIVATE | MAP_FIXED, fd, segment->p_offset - before);
  if (mapped < 0 || end == held) return mapped;
  /* Zeroes behind what the file holds: all the rest of its last page, which the loader takes as its first heap, then pages of their own. */
  memset((void *)held, 0, next - held);
  if (end <= next) return mapped;
  return MMAP(next, end - next, protection, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
}

/* Maps the dynamic loader. Returns its base; `*entry` is where it begins. */
static word map_loader(word *entry) {
  char head[PAGE_BYTES];
  long fd = CALL(SYS_open, INTERPRETER, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) fail(INTERPRETER ": cannot be opened, wanted the dynamic loader of glibc");
  long got = CALL(SYS_read, fd, head, sizeof head);
  const Elf64_Ehdr *file = (const Elf64_Ehdr *)head;
  if (got < (long)sizeof *file || after(head, ELFMAG) == NULL || file->e_ident[EI_CLASS] != ELFCLASS64 ||
      file->e_machine != EM_X86_64 || file->e_type != ET_DYN || file->e_phentsize != sizeof(Elf64_Phdr) ||
      file->e_phoff > (word)got || file->e_phnum > ((word)got - file->e_phoff) / sizeof(Elf64_Phdr)) {
    fail(INTERPRETER ": found something else, wanted the dynamic loader of glibc");
  }
  const Elf64_Phdr *segments = (const Elf64_Phdr *)(head + file->e_phoff);
  word low = -1, high = 0;
  for (int i = 0; i < file->e_phnum; i++) {
    if (segments[i].p_type != PT_LOAD) continue;
    word begin = segments[i].p_vaddr & -PAGE_BYTES, end = segments[i].p_vaddr + segments[i].p_memsz;
    if (begin < low) low = begin;
    if (end > high) high = end;
  }
  long reserved = MMAP(0, high - low, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved < 0) fail(INTERPRETER ": found no room for it in memory");
  word base = (word)reserved - low;
  for (int i = 0; i < file->e_phnum; i++) {
    if (segments[i].p_type == PT_LOAD && map_segment(base, &segments[i], fd) < 0) fail(INTERPRETER ": cannot be mapped");
  }
  CALL(SYS_close, fd, 0, 0);
  *entry = base + file->e_entry;
  return base;
}

/* The program headers as the linker made them: with the interpreter, without the entry. */
static void restore_headers(Elf64_Phdr *headers) {
  for (word i = 0; i < PROGRAM_HEADER_COUNT; i++) {
    Elf64_Phdr *header = &headers[i];
    /* Whoever reads them takes the program's place in memory to be the address of the headers less this. */
    if (header->p_type == PT_PHDR) header->p_vaddr = header->p_paddr = (word)headers;
    if (header->p_type != PT_LOAD || header->p_vaddr != ENTRY_ADDRESS) continue;
    header->p_type = PT_INTERP;
    header->p_flags = PF_R;
    header->p_offset = INTERPRETER_OFFSET;
    header->p_vaddr = header->p_paddr = INTERPRETER_ADDRESS;
    header->p_filesz = header->p_memsz = INTERPRETER_BYTES;
    header->p_align = 1;
  }
}

/* As the kernel enters a program with an interpreter. `variable`, unless NULL, joins its environment. */
static _Noreturn void enter_program(const struct start *start, const char *variable) {
  word entry, base = map_loader(&entry);
  word before = (word)start->auxiliary - (word)start->stack - sizeof(char *);
  /* Both are the program's from here on. Its stack begins at a multiple of 16. */
  Elf64_Phdr *headers = __builtin_alloca(PROGRAM_HEADER_COUNT * sizeof *headers);
  char *stack = __builtin_alloca_with_align(before + 2 * sizeof(char *) + start->pairs * sizeof(Elf64_auxv_t), 128);
  /* Not from AT_PHDR: before Linux 5.18 that is wrong where the first segment does not begin the file. */
  memcpy(headers, (const void *)PROGRAM_HEADERS, PROGRAM_HEADER_COUNT * sizeof *headers);
  restore_headers(headers);
  memcpy(stack, start->stack, before);
  const char **variables = (const char **)(stack + before);
  if (variable != NULL) *variables++ = variable;
  *variables++ = NULL;
  Elf64_auxv_t *auxiliary = (Elf64_auxv_t *)variables;
  for (word i = 0; i < start->pairs; i++) {
    auxiliary[i] = start->auxiliary[i];
    if (auxiliary[i].a_type == AT_PHDR) auxiliary[i].a_un.a_val = (word)headers;
    if (auxiliary[i].a_type == AT_BASE) auxiliary[i].a_un.a_val = base;
    if (auxiliary[i].a_type == AT_ENTRY) auxiliary[i].a_un.a_val = PROGRAM_ENTRY;
  }
  /* psABI x86-64, "Process Initialization": rdx is a function to be called at the exit, or 0. */
  __asm__ volatile("mov %0, %%rsp\n\txor %%edx, %%edx\n\txor %%ebp, %%ebp\n\tjmp *%1"
                   :
                   : "r"(stack), "r"(entry)
                   : "memory");
  __builtin_unreachable();
}

/* ---- The call --------------------------------------------------------------------------------------------------------------------- */

/* Zeroed memory that costs only what is touched of it. */
static char *room(word length) {
  long at = MMAP(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at < 0) fail("found no memory");
  return (char *)at;
}

/* Negative where it could not be written. */
static long write_all(long fd, struct bytes bytes) {
  while (bytes.length > 0) {
    long written = CALL(SYS_write, fd, bytes.at, bytes.length);
    if (written < 0) return written;
    bytes.at += written;
    bytes.length -= (word)written;
  }
  return 0;
}

/* Enters the program with `input` as its standard input, which has been read. */
static _Noreturn void leave_to_program(const struct start *start, struct bytes input, const char *variable) {
  long file = CALL(SYS_memfd_create, "stdin", 0, 0);
  if (file < 0 || write_all(file, input) < 0 || CALL(SYS_lseek, file, 0, SEEK_SET) < 0 || CALL(SYS_dup2, file, 0, 0) < 0) {
    fail("standard input cannot be handed on");
  }
  CALL(SYS_close, file, 0, 0);
  enter_program(start, variable);
}

static const char *skip_space(const char *at) {
  while (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t') at++;
  return at;
}

/* Where the JSON text's string that begins behind `at` ends: at its quote, or at the end of all. */
static const char *end_of_string(const char *at) {
  while (*at != 0 && *at != '"') at += *at == '\\' && at[1] != 0 ? 2 : 1;
  return at;
}

/*
 * The value of "socket" among the members of the network configuration itself, not of what is inside of them, where others than root may have
 * chosen the names; of length 0 where it is not plain text. The configuration is not checked: the daemon reads it, and refuses a call that was meant
 * for another.
 */
static struct bytes find_socket(const char *json) {
  word depth = 0;
  for (const char *at = json; *at != 0; at++) {
    if (*at == '{' || *at == '[') depth++;
    if (*at == '}' || *at == ']') depth--;
    if (*at != '"') continue;
    const char *name = at + 1;
    at = end_of_string(name);
    if (*at == 0) break;
    if (depth != 1 || after(name, "socket\"") == NULL) continue;
    const char *value = skip_space(at + 1);
    if (*value != ':') continue;
    value = skip_space(value + 1);
    if (*value != '"') return (struct bytes){value, 0};
    word length = 0;
    while (value[1 + length] != 0 && value[1 + length] != '"' && value[1 + length] != '\\') length++;
    return (struct bytes){value + 1, value[1 + length] == '"' ? length : 0};
  }
  return (struct bytes){DEFAULT_SOCKET, sizeof DEFAULT_SOCKET - 1};
}

static char *append(char *to, const char *from, word length) { return (char *)memcpy(to, from, length) + length; }

static char *append_number(char *to, word number) {
  char digits[20];
  word length = 0;
  do digits[sizeof digits - ++length] = (char)('0' + number % 10);
  while ((number /= 10) > 0);
  return append(to, digits + sizeof digits - length, length);
}

/*
 * The body: "NAME=value" with a NUL behind each, for the socket and for all CNI variables, another NUL, then standard input.
 * src/cni/call.ts reads it.
 */
static struct bytes request(const struct start *start, struct bytes socket, struct bytes input) {
  static const char name[] = "MANX_SOCKET=";
  word variables = sizeof name + socket.length;
  for (char **variable = start->environment; *variable != NULL; variable++) {
    if (after(*variable, "CNI_") != NULL) variables += length_of(*variable) + 1;
  }
  char *begin = room(sizeof REQUEST_HEAD + 24 + variables + 1 + input.length);
  char *to = append(begin, REQUEST_HEAD, sizeof REQUEST_HEAD - 1);
  to = append_number(to, variables + 1 + input.length);
  to = append(to, "\r\n\r\n", 4);
  to = append(to, name, sizeof name - 1);
  to = append(to, socket.at, socket.length) + 1;
  for (char **variable = start->environment; *variable != NULL; variable++) {
    if (after(*variable, "CNI_") != NULL) to = append(to, *variable, length_of(*variable)) + 1;
  }
  to = append(to + 1, input.at, input.length);
  return (struct bytes){begin, (word)(to - begin)};
}

/* The body of an answer with status 200 that is whole; `at` is NULL while it is not, and `*bad` is set where it will never be. */
static struct bytes body_of(const char *answer, word length, int *bad) {
  static const char field[] = "\r\ncontent-length:";
  struct bytes none = {NULL, 0};
  const char *head_end = NULL, *length_field = NULL;
  for (const char *at = answer; *at != 0 && head_end == NULL; at++) {
    word i = 0;
    while (field[i] != 0 && (at[i] | (at[i] >= 'A' && at[i] <= 'Z' ? 0x20 : 0)) == field[i]) i++;
    if (field[i] == 0) length_field = at + i;
    head_end = after(at, "\r\n\r\n");
  }
  if (head_end == NULL) return none;
  *bad = 1;
  if (after(answer, "HTTP/1.1 200 ") == NULL || length_field == NULL) return none;
  while (*length_field == ' ') length_field++;
  word wanted = 0;
  while (*length_field >= '0' && *length_field <= '9' && wanted <= ANSWER_LIMIT_BYTES) {
    wanted = wanted * 10 + (word)(*length_field++ - '0');
  }
  word held = length - (word)(head_end - answer);
  if (wanted == 0 || wanted > ANSWER_LIMIT_BYTES) return none;
  *bad = 0;
  return held < wanted ? none : (struct bytes){head_end, wanted};
}

/*
 * Asks the daemon, writes what it answered and ends. Returns where the program had better ask: the number of the error where this one was asked
 * and did not answer, 0 where nothing was done.
 */
static int ask(const struct start *start, struct bytes input) {
  struct bytes path = find_socket(input.at);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (path.length == 0 || path.length >= sizeof address.sun_path) return 0;
  memcpy(address.sun_path, path.at, path.length);
  long fd = CALL(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || CALL(SYS_connect, fd, &address, sizeof address) < 0) return 0;
  struct timeval deadline = {.tv_sec = ANSWER_DEADLINE_S};
  call(SYS_setsockopt, (word)fd, SOL_SOCKET, SO_RCVTIMEO, (word)&deadline, sizeof deadline, 0);
  call(SYS_setsockopt, (word)fd, SOL_SOCKET, SO_SNDTIMEO, (word)&deadline, sizeof deadline, 0);
  struct bytes rest = request(start, path, input);
  while (rest.length > 0) {
    long sent = call(SYS_sendto, (word)fd, (word)rest.at, rest.length, MSG_NOSIGNAL, 0, 0);
    /* Half a request is no request. */
    if (sent < 0) return 0;
    rest.at += sent;
    rest.length -= (word)sent;
  }
  char *answer = room(ANSWER_LIMIT_BYTES + PAGE_BYTES + 1);
  word length = 0;
  struct bytes body = {NULL, 0};
  int bad = 0;
  while (body.at == NULL && !bad) {
    if (length == ANSWER_LIMIT_BYTES + PAGE_BYTES) return EMSGSIZE;
    long got = CALL(SYS_read, fd, answer + length, ANSWER_LIMIT_BYTES + PAGE_BYTES - length);
    if (got <= 0) return got == 0 ? ECONNRESET : got == -EAGAIN ? ETIMEDOUT : (int)-got;
    length += (word)got;
    body = body_of(answer, length, &bad);
  }
  /*
   * Another release's daemon, or one that reads another socket in this configuration: whatever else than 200 means that nothing was done. A 200 that
   * makes no sense is from no daemon of ours.
   */
  if (bad || (body.at[0] != '0' && body.at[0] != '1')) return 0;
  long written = write_all(1, (struct bytes){body.at + 1, body.length - 1});
  leave(written < 0 ? 1 : body.at[0] - '0');
}

static void call_plugin(const struct start *start) {
  /* One more than may come, and a NUL behind. */
  char *input = room(INPUT_LIMIT_BYTES + 2);
  word length = 0;
  while (length <= INPUT_LIMIT_BYTES) {
    long got = CALL(SYS_read, 0, input + length, INPUT_LIMIT_BYTES + 1 - length);
    if (got < 0 && length == 0) return;
    if (got <= 0) break;
    length += (word)got;
  }
  struct bytes read = {input, length};
  int error = length > INPUT_LIMIT_BYTES ? 0 : ask(start, read);
  char variable[48];
  char *to = append(variable, "MANX_CNI_UNANSWERED=", 20);
  *append_number(to, (word)error) = 0;
  leave_to_program(start, read, error == 0 ? NULL : variable);
}

/* VERSION is answered without a daemon, by the program. */
static int is_asked_of_daemon(const char *command) {
  static const char verbs[][8] = {"ADD", "DEL", "CHECK", "GC", "STATUS"};
  for (word i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
    const char *end = after(command, verbs[i]);
    if (end != NULL && *end == 0) return 1;
  }
  return 0;
}

__attribute__((used)) static _Noreturn void begin(word *stack) {
  struct start start = {.stack = stack, .environment = (char **)(stack + stack[0] + 2)};
  char **variable = start.environment;
  const char *command = NULL;
  for (; *variable != NULL; variable++) {
    if (command == NULL) command = after(*variable, "CNI_COMMAND=");
  }
  start.auxiliary = (Elf64_auxv_t *)(variable + 1);
  while (start.auxiliary[start.pairs++].a_type != AT_NULL) continue;
  if (command != NULL && is_asked_of_daemon(command)) call_plugin(&start);
  enter_program(&start, NULL);
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
