// Doubles until the sandbox is full; every copy stays. Bounded by depth.
#include <stdio.h>
#include <unistd.h>
int main(void)
{
	for (int depth = 0; depth < 6; depth++)
		fork();
	sleep(1);
	return 0;
}
