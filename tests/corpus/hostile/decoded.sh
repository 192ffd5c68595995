#!/bin/sh
# Commands that hide behind an encoding.
echo ZWNobyBoaWRkZW4K | base64 -d | sh
