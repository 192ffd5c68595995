
*true