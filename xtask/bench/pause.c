/* Says on standard output that it runs, then stays until it is ended. */
#include <unistd.h>
int main(void) {
    if (write(1, "r", 1) != 1) return 1;
    for (;;) pause();
}
