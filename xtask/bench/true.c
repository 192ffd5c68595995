/* The smallest payload: start-up is all that is measured. */
int main(void) { return 0; }
